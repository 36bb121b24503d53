// Brings the page up to date while somebody looks at it. Without it the page reloads itself.
"use strict";

const main = document.getElementById("main");

function isBusy() {
  const focus = document.activeElement;
  return document.hidden || (main.contains(focus) && focus !== main)
    || String(window.getSelection()) !== "";
}

async function refresh() {
  if (!isBusy()) {
    try {
      const response = await fetch(window.location.href, { headers: { Accept: "text/html" } });
      const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
      const inner = fresh.getElementById("main");
      if (response.ok && inner && !isBusy()) {
        if (inner.innerHTML !== main.innerHTML) {
          main.replaceChildren(...inner.childNodes);
          document.title = fresh.title;
          document.querySelector("link[rel=icon]").href =
            fresh.querySelector("link[rel=icon]").getAttribute("href");
        }
        document.querySelector("footer time").replaceWith(fresh.querySelector("footer time"));
      }
      document.body.classList.remove("stale");
    } catch {
      document.body.classList.add("stale"); // the daemon does not answer
    }
  }
  window.setTimeout(refresh, document.getElementById("transfers") ? 2000 : 10000);
}

window.setTimeout(refresh, document.getElementById("transfers") ? 2000 : 10000);
