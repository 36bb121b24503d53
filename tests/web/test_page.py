"""The page in a real browser: what a person sees by eye, by keyboard, on a phone, in the dark, with
a screen reader, and without script."""

import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.btrfs.harness import DATE_FORMAT, Place, btrfs, subvolume
from tests.support.wait import wait_until
from tests.web.conftest import Site, StartSite

webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
HOUR = timedelta(hours=1)
Open = Callable[..., Any]


@contextmanager
def browser(width: int = 1280, *, dark: bool = False, script: bool = True) -> Iterator[Any]:
    """Chromium with a new profile."""
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = "/usr/bin/chromium"
        for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},900"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
        try:
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
            if not script:
                driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
            yield driver
        finally:
            driver.quit()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """One browser for those tests that need nothing special of it."""
    with browser() as driver:
        yield driver


@pytest.fixture(scope="module")
def axe() -> str:
    """The script of axe-core, which test.sh has fetched."""
    (package,) = Path(__file__).parents[2].glob(".cache/axe-core-*.tgz")
    with tarfile.open(package) as archive:
        file = archive.extractfile("package/axe.min.js")
        assert file is not None
        return file.read().decode()


def take(place: Place, volume: str, age: timedelta, host: str = "") -> str:
    name = f"{volume}@{(datetime.now() - age).strftime(DATE_FORMAT)}{host and '@'}{host}"
    btrfs("subvolume", "snapshot", "-r", place.volumes / volume, place.snapshots / name)
    return name


@pytest.fixture
def shop(site: Site, place: Place) -> Site:
    """A host with a bit of everything, one failing job included."""
    for name in ("db", "wiki", "scratch", "<i>odd & <b>"):
        subvolume(place.volumes / name)
    for hours in (0.1, 0.5, 3, 3.5, 5, 5.5, 30, 31, 24 * 30):
        take(place, "db", hours * HOUR)
    take(place, "db", 3 * HOUR, "backup")
    take(place, "<i>odd & <b>", HOUR, "<i>host")
    rows = (  # in one go: the purge never runs
        *("db,snapshot,60", "db,purge:4h:1d:2w,60,False"),
        *("wiki,replicate:127.0.0.1,60", "gone,snapshot,60", ""),
    )
    Path(site.daemon.environ["BUTTERVOLUME_SCHEDULE"]).write_text("\n".join(rows))
    wait_until(lambda: not site.get("/api/status").json["Healthy"], what="the job to fail")
    return site


PAGES = (
    "/",
    "/volumes/db",
    "/volumes/wiki",
    "/volumes/scratch",
    "/volumes/%3Ci%3Eodd%20%26%20%3Cb%3E",
    "/volumes/no",
    "/log",
)


def look(driver: Any, site: Site, path: str = "/") -> Any:
    driver.get(f"{site.url}{path}")
    return driver


def text(driver: Any, selector: str) -> str:
    """In one step: the page may be replaced at any moment."""
    script = "return document.querySelector(arguments[0])?.innerText ?? ''"
    return str(driver.execute_script(script, selector))


def test_at_one_glance_all_is_well(site: Site, chromium: Any) -> None:
    site.daemon.call("Create", Name="db")
    look(chromium, site)

    assert chromium.title.startswith("✓ all is well · ")
    assert text(chromium, "h1").endswith("All is well")
    verdict = chromium.find_element(By.CSS_SELECTOR, ".verdict.good")
    assert verdict.rect["y"] < 120
    assert (
        chromium.find_element(By.CSS_SELECTOR, "link[rel=icon]")
        .get_attribute("href")
        .endswith("good.svg")
    )


def test_at_one_glance_something_is_wrong_and_at_a_second_what(shop: Site, chromium: Any) -> None:
    look(chromium, shop)

    assert chromium.title.startswith("✗ 1 problem · ")
    problem = text(chromium, ".problems li")
    assert problem.startswith("failing wiki replicate:127.0.0.1 since ")
    assert "Connection refused" in problem
    row = chromium.find_elements(By.CSS_SELECTOR, "table.volumes tbody tr")[0]
    assert row.text.startswith("problem:\nwiki")
    assert "failing" in row.text

    chromium.find_element(By.CSS_SELECTOR, ".problems a").click()
    assert text(chromium, "h1") == "wiki"
    assert "Connection refused" in text(chromium, ".problems")


def test_the_timeline_shows_what_is_kept_where_and_what_goes(shop: Site, chromium: Any) -> None:
    look(chromium, shop, "/volumes/db")

    places = [
        (float(dot.get_attribute("cx")), float(dot.get_attribute("cy")))
        for dot in chromium.find_elements(By.CSS_SELECTOR, "svg.timeline circle")
    ]
    lanes = [each.text for each in chromium.find_elements(By.CSS_SELECTOR, ".lane-text")]
    strips = [each.text for each in chromium.find_elements(By.CSS_SELECTOR, ".strip-text")]
    crosses = chromium.find_elements(By.CSS_SELECTOR, "svg.timeline path.doomed title")

    assert lanes == ["here", "backup"]
    assert strips == ["all", "1 per 4 hours", "1 per day", "none"]
    assert len({y for _, y in places}) == 2
    reasons = [cross.get_attribute("textContent") for cross in crosses]
    assert any("older than 2w" in reason for reason in reasons)
    assert any("not the oldest of the" in reason for reason in reasons)
    table = text(chromium, "section[aria-labelledby=table-title]")
    assert table.count("until the next purge") == len(crosses)
    assert "all of the last 4 hours, then one per 4 hours up to a day" in text(
        chromium, ".forecast"
    )
    assert "about" in text(chromium, ".forecast")


def test_the_runs_of_jobs_are_bars_and_the_log_tells_of_each(shop: Site, chromium: Any) -> None:
    look(chromium, shop, "/volumes/wiki")
    bars = chromium.find_elements(By.CSS_SELECTOR, "svg.bars rect.failed title")
    assert "Connection refused" in bars[0].get_attribute("textContent")
    chromium.find_element(By.CSS_SELECTOR, "section[aria-labelledby=runs-title] a").click()

    assert "/log?volume=wiki" in chromium.current_url
    rows = [row.text for row in chromium.find_elements(By.CSS_SELECTOR, "tbody tr")]
    assert rows
    assert all("wiki" in row for row in rows)
    assert any("failed" in row and "Connection refused" in row for row in rows)
    look(chromium, shop, "/log?failed=1")
    rows = [row.text for row in chromium.find_elements(By.CSS_SELECTOR, "tbody tr")]
    assert all("failed" in row for row in rows)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1280])
def test_axe_finds_nothing(shop: Site, axe: str, width: int, dark: bool) -> None:
    with browser(width, dark=dark) as driver:
        for path in PAGES:
            look(driver, shop, path)
            driver.execute_script(axe)
            found = driver.execute_async_script(
                "axe.run({resultTypes: ['violations']}).then(arguments[arguments.length - 1])"
            )
            assert found["violations"] == [], path
            wide = driver.execute_script("return document.documentElement.scrollWidth")
            assert wide <= width, path


def test_the_page_asks_nobody_else_and_breaks_no_policy_of_its_own(
    shop: Site, chromium: Any
) -> None:
    chromium.get_log("browser")  # of the tests before
    for path in PAGES:
        look(chromium, shop, path)
        loaded = chromium.execute_script(
            "return performance.getEntriesByType('resource').map(entry => entry.name)"
        )
        assert loaded
        assert all(name.startswith(shop.url) for name in loaded)
        severe = [entry["message"] for entry in chromium.get_log("browser")]
        assert [line for line in severe if "404 (NOT FOUND)" not in line] == [], path


def test_hostile_names_are_shown_as_they_are(shop: Site, chromium: Any) -> None:
    look(chromium, shop)

    chromium.find_element(By.LINK_TEXT, "<i>odd & <b>").click()

    assert text(chromium, "h1") == "<i>odd & <b>"
    assert not chromium.find_elements(By.CSS_SELECTOR, "main i, main b")
    assert "<i>host" in text(chromium, ".card")


def test_by_keyboard_alone_one_gets_everywhere(shop: Site) -> None:
    with browser() as driver:
        look(driver, shop)

        def press(*keys: str) -> Any:
            driver.switch_to.active_element.send_keys(*keys)
            return driver.switch_to.active_element

        skip = press(Keys.TAB)
        assert (skip.text, skip.rect["x"] >= 0) == ("Skip to the content", True)
        press(Keys.ENTER)
        assert driver.switch_to.active_element.get_attribute("id") == "main"
        first = press(Keys.TAB)
        assert first.text == "wiki"
        assert (
            driver.execute_script("return getComputedStyle(arguments[0]).outlineStyle", first)
            == "solid"
        )
        press(Keys.ENTER)
        wait_until(lambda: text(driver, "h1") == "wiki", what="the page of the volume")


def test_a_search_works_without_script(shop: Site) -> None:
    with browser(script=False) as driver:
        look(driver, shop)
        field = driver.find_element(By.ID, "q")
        field.send_keys("W", Keys.ENTER)
        wait_until(lambda: "q=W" in driver.current_url, what="the answer")
        names = [each.text for each in driver.find_elements(By.CSS_SELECTOR, "tbody th a")]
        assert names == ["wiki"]
        assert "All is well" not in driver.page_source
        assert 'http-equiv="refresh"' in driver.page_source


def test_the_page_comes_up_to_date_by_itself(site: Site, place: Place) -> None:
    with browser() as driver:
        look(driver, site)
        assert text(driver, "h1").endswith("All is well")
        driver.execute_script("document.title = 'as it was'")

        subvolume(place.volumes / "db")
        site.daemon.call("Schedule", Name="db", Action="purge:1h:1d", Timer="60")

        wait_until(lambda: text(driver, "h1").endswith("1 problem"), timeout=60, what="the news")
        assert driver.title.startswith("✗ 1 problem")
        assert (
            driver.find_element(By.CSS_SELECTOR, "link[rel=icon]")
            .get_attribute("href")
            .endswith("bad.svg")
        )


def test_a_transfer_under_way_moves(start_site: StartSite, runtime: Path) -> None:
    ssh = runtime / "bin/ssh"
    ssh.parent.mkdir()
    ssh.write_text("#!/bin/sh\nexec sleep 100\n")
    ssh.chmod(0o755)
    site = start_site(PATH=f"{ssh.parent}:{os.environ['PATH']}", BUTTERVOLUME_TIMER="1")
    site.daemon.call("Create", Name="db")
    site.daemon.call("Schedule", Name="db", Action="replicate:far", Timer="60")
    wait_until(lambda: site.daemon.call("Transfers")["Transfers"], what="the transfer")
    with browser() as driver:
        look(driver, site)
        before = text(driver, "#transfers li")
        assert "far" in before
        wait_until(lambda: text(driver, "#transfers li") != before, what="it to move")
    site.daemon.stop()


def test_somebody_who_reads_or_types_is_not_disturbed(shop: Site) -> None:
    with browser() as driver:
        look(driver, shop)
        driver.find_element(By.ID, "q").send_keys("typing")
        driver.execute_script("for (let i = 0; i < 3; i++) refresh()")

        shown = driver.find_element(By.ID, "q")
        assert shown.get_attribute("value") == "typing"
        assert driver.switch_to.active_element == shown


def test_a_daemon_that_has_gone_is_not_passed_off_as_well(start_site: StartSite) -> None:
    site = start_site()
    with browser() as driver:
        look(driver, site)
        site.daemon.stop()
        wait_until(
            lambda: driver.execute_script("return document.body.className") == "stale",
            timeout=60,
            what="the page to say so",
        )
        shown = driver.execute_script("return getComputedStyle(document.body, '::before').content")
        assert "does not answer" in shown
