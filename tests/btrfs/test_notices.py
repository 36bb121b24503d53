"""Notices of a real daemon to a mail server, a hook as of ntfy and a JSON hook."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from email import message_from_bytes
from email.header import decode_header
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.btrfs.conftest import StartDaemon
from tests.support.ports import free_port
from tests.support.wait import wait_until

pytest.importorskip("apprise")
controller = pytest.importorskip("aiosmtpd.controller")


@dataclass
class Hook:
    """A web server that keeps what is sent to it."""

    server: ThreadingHTTPServer
    got: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def hook() -> Iterator[Hook]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            made.got.append((self.path, json.loads(body)))
            answer = b'{"id": "1"}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    made = Hook(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
    thread = threading.Thread(target=made.server.serve_forever, daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


@dataclass
class Mailbox:
    """What a mail server has taken."""

    port: int
    got: list[tuple[str, str]] = field(default_factory=list)
    """Subject and text."""


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    class Handler:
        async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:  # noqa: N802
            mail = message_from_bytes(envelope.content)
            text = mail.get_payload(decode=True)
            assert isinstance(text, bytes)
            subject = "".join(
                part.decode(charset or "ascii") if isinstance(part, bytes) else part
                for part, charset in decode_header(mail["Subject"])
            )
            box.got.append((subject, text.decode()))
            return "250 OK"

    box = Mailbox(free_port())
    running = controller.Controller(Handler(), hostname="127.0.0.1", port=box.port)
    running.start()
    yield box
    running.stop()


def test_a_problem_reaches_mail_ntfy_and_json_and_so_does_its_end(
    start_daemon: StartDaemon, hook: Hook, mailbox: Mailbox
) -> None:
    daemon = start_daemon(
        BUTTERVOLUME_NOTIFY=f"json://{hook.address}/hook ntfy://{hook.address}/topic "
        f"mailto://127.0.0.1:{mailbox.port}?from=a@example.org&to=b@example.org"
    )
    daemon.call("Create", Name="db")
    daemon.call("Schedule", Name="db", Action="purge:1h:1d", Timer="60")

    wait_until(lambda: len(hook.got) >= 2 and mailbox.got, timeout=90, what="the messages")

    said = "unprotected: db: "
    by_path = dict(hook.got)
    assert said in by_path["/hook"]["message"]
    assert "1 problem with volumes" in by_path["/hook"]["title"]
    assert by_path["/"]["topic"] == "topic"
    assert said in by_path["/"]["message"]
    ((subject, text),) = mailbox.got
    assert "1 problem with volumes" in subject
    assert said in text

    daemon.call("Schedule", Name="db", Action="purge:1h:1d", Timer="delete")
    wait_until(lambda: len(mailbox.got) == 2, timeout=120, what="the message of its end")
    subject, text = mailbox.got[1]
    assert "all is well again" in subject
    assert f"over: {said}" in text
    daemon.stop()


def test_the_test_arrives_or_says_why_not(start_daemon: StartDaemon, hook: Hook) -> None:
    daemon = start_daemon(BUTTERVOLUME_NOTIFY=f"json://{hook.address}/x nonsense://y")

    done = daemon.cli("notify", "--test")

    assert done.returncode == 1
    assert "address 2 (nonsense) is none that Apprise knows" in done.stderr
    ((path, message),) = hook.got
    assert (path, message["message"]) == ("/x", "Notices of buttervolume arrive here.")


def test_without_notify_the_test_says_so(start_daemon: StartDaemon) -> None:
    done = start_daemon().cli("notify", "--test")

    assert done.returncode == 1
    assert "NOTIFY is empty" in done.stderr


def test_a_post_that_is_down_holds_up_no_job_and_no_end(start_daemon: StartDaemon) -> None:
    secret = "hidden" + "password"
    daemon = start_daemon(
        BUTTERVOLUME_NOTIFY=f"json://user:{secret}@127.0.0.1:1/x", BUTTERVOLUME_TIMER="1"
    )
    daemon.call("Create", Name="db")
    daemon.call("Create", Name="web")
    daemon.call("Schedule", Name="db", Action="purge:1h:1d", Timer="60")
    daemon.call("Schedule", Name="web", Action="snapshot", Timer="60")

    wait_until(lambda: daemon.snapshot_names("web"), what="the job")
    wait_until(lambda: "cannot send a notice" in daemon.stderr(), timeout=90, what="the complaint")
    daemon.stop()
    assert secret not in daemon.stderr() + daemon.stdout()
