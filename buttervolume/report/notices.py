"""Notices: a message when a problem begins and one when it ends, and never a storm of them.

What is new is decided by pure functions; the rest is a thread that nobody waits for. Messages go
out by Apprise, which knows mail, chats and hooks of a hundred kinds, and is loaded when there is
something to send.
"""

import importlib.util
import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from buttervolume.errors import ButtervolumeError, OperationFailed
from buttervolume.report.status import Problem, Report
from buttervolume.system import files
from buttervolume.words import LONGEST, shortened

LOOK_EVERY = 10.0
"""Seconds between two looks at the report."""
SETTLE = 30.0
"""Seconds without notices after a start: what was missed while the host was off is made up for
then."""
BETWEEN_MESSAGES = 60.0
"""Seconds between two messages, at the least."""
_MOST_LINES = 20
_LONGEST_LINE = 400
_ROOM_FOR_MORE = 64
"""Bytes, for a line that says how many more there are."""

Key = str
"""What makes a problem the same one as before, as text."""


@dataclass(frozen=True)
class Message:
    """What is sent."""

    title: str
    body: str


@dataclass(frozen=True)
class News:
    """What has changed since the last message; problems by their keys."""

    begun: Mapping[Key, str]
    ended: Mapping[Key, str]

    def __bool__(self) -> bool:
        return bool(self.begun or self.ended)


def key_of(problem: Problem) -> Key:
    """The key of a problem."""
    return "\n".join(problem.key)


def describe(problem: Problem) -> str:
    """A problem in a line."""
    return shortened(f"{problem.kind}: {problem.text}", _LONGEST_LINE)


def compare(told: Mapping[Key, str], problems: Iterable[Problem]) -> News:
    """What there is to tell, after what was told last."""
    now = {key_of(problem): describe(problem) for problem in problems}
    return News(
        {key: text for key, text in now.items() if key not in told},
        {key: text for key, text in told.items() if key not in now},
    )


def word(news: News, node: str, problems: int) -> Message:
    """Put news into a message."""
    if problems:
        title = f"{node}: {problems} problem{'' if problems == 1 else 's'} with volumes"
    else:
        title = f"{node}: all is well again with the volumes"
    lines = [*news.begun.values(), *(f"over: {text}" for text in news.ended.values())]
    sizes = accumulate(len(line.encode()) + 1 for line in lines[:_MOST_LINES])
    shown = lines[: sum(size <= LONGEST - _ROOM_FOR_MORE for size in sizes)]
    if len(lines) > len(shown):
        shown.append(f"… and {len(lines) - len(shown):,} more: buttervolume status")
    return Message(shortened(title, _LONGEST_LINE), "\n".join(shown))


Send = Callable[[Message], None]


class Apprise:
    """Sends messages to the addresses of NOTIFY."""

    def __init__(self, addresses: Sequence[str], first: int = 1) -> None:
        """`first` is the number of the first address among all."""
        self._addresses = addresses
        self._first = first

    def each(self) -> "dict[str, Apprise]":
        """What sends to each address alone, by a name that holds no secret."""
        return {
            f"{number} {address.partition(':')[0]}": Apprise([address], number)
            for number, address in enumerate(self._addresses, self._first)
        } or {"": self}

    def check(self) -> str | None:
        """Why nothing can be sent, if so; it loads nothing."""
        if not self._addresses:
            return "NOTIFY is empty, so nobody is told"
        if importlib.util.find_spec("apprise") is None:
            return (
                "NOTIFY is set, but Apprise, which sends the messages, is not installed: "
                "pip install 'buttervolume[notify]', or apt install apprise"
            )
        return None

    def __call__(self, message: Message) -> None:
        """Send a message to all; raise OperationFailed if one of them does not take it."""
        problem = self.check()
        if problem is not None:
            raise OperationFailed("send a notice", problem)
        import apprise

        failed = []
        for number, address in enumerate(self._addresses, self._first):
            target = apprise.Apprise()
            scheme = address.partition(":")[0]
            if not target.add(address):
                failed.append(f"address {number} ({scheme}) is none that Apprise knows")
            elif not target.notify(
                title=message.title, body=message.body, body_format=apprise.NotifyFormat.TEXT
            ):
                failed.append(f"address {number} ({scheme}) did not take it")
        if failed:
            raise OperationFailed("send a notice", "; ".join(failed))


class Notifier:
    """Looks at the report now and then, in a thread of its own, and tells what is new."""

    def __init__(
        self,
        report: Callable[[], Report],
        sends: Mapping[str, Send],
        node: str,
        memory: Path,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`sends` are for one address each, by its name: an address that takes nothing is tried
        again without another's hearing anything twice. `memory` is the file with what was told, so
        that a restart tells nothing twice either."""
        self._report = report
        self._sends = sends
        self._node = node
        self._memory = memory
        self._clock = clock
        self._told: dict[str, dict[Key, str]] = {}
        """By the name of the address."""
        self._next = dict.fromkeys(sends, clock() + SETTLE)
        self._complained: set[str] = set()
        self._log = logging.getLogger(__name__)

    def start(self) -> None:
        """Begin."""
        self._told = self._remember()
        threading.Thread(target=self._loop, name="notices", daemon=True).start()

    def _loop(self) -> None:
        while True:
            time.sleep(LOOK_EVERY)
            try:
                self.look()
            except Exception:  # noqa: BLE001 - whatever it is, the next look may be better
                self._log.exception("notices failed; they go on")

    def look(self) -> None:
        """Look once, and send a message to whom there is news for, where it is time for one."""
        due = [name for name, moment in self._next.items() if moment <= self._clock()]
        if not due:
            return
        try:
            report = self._report()
        except ButtervolumeError as error:
            self._log.warning("no notices now: %s", error)
            return
        arrived = [name for name in due if self._tell(name, report)]
        if arrived:
            try:
                files.replace(self._memory, json.dumps({"told": self._told}, indent=1))
            except OSError as error:
                self._log.warning("cannot write %s: %s", self._memory, error)

    def _tell(self, name: str, report: Report) -> bool:
        """Tell an address what is new to it; whether there was something, and it has arrived."""
        news = compare(self._told.get(name, {}), report.problems)
        if not news:
            return False
        self._next[name] = self._clock() + BETWEEN_MESSAGES
        try:
            self._sends[name](word(news, self._node, len(report.problems)))
        except OperationFailed as error:
            if name not in self._complained:
                self._log.error("%s; it is tried again until it works", error)
            self._complained.add(name)
            return False
        self._complained.discard(name)
        self._told[name] = {key_of(problem): describe(problem) for problem in report.problems}
        return True

    def test(self) -> None:
        """Send a message that says it is a test. Raises OperationFailed."""
        message = Message(f"{self._node}: a test", "Notices of buttervolume arrive here.")
        reasons = []
        for send in self._sends.values():
            try:
                send(message)
            except OperationFailed as error:
                reasons.append(str(error.reason))
        if reasons:
            raise OperationFailed("send a notice", "; ".join(dict.fromkeys(reasons)))

    def _remember(self) -> dict[str, dict[Key, str]]:
        """What was told before the daemon was started; what cannot be read is told again."""
        try:
            told = json.loads(self._memory.read_text(encoding="utf-8"))["told"]
            return {
                str(name): {str(key): str(text) for key, text in problems.items()}
                for name, problems in told.items()
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._log.warning("%s: %s; every problem is told once now", self._memory, error)
            return {}
