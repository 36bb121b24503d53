"""A transfer as the command line sees it: its progress on a terminal, its end by Ctrl-C."""

import os
import secrets
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from buttervolume.cli.terminal import say
from buttervolume.errors import ButtervolumeError
from buttervolume.words import printable

_INTERVAL = 0.5
"""Seconds between two looks at a transfer."""
_END_LIMIT = 60.0
"""Seconds to wait for the end of a transfer that was cancelled."""

Call = Callable[..., dict[str, Any]]


@contextmanager
def watch(call: Call, operation: str, volume: str, hosts: Collection[str]) -> Iterator[str]:
    """Show the transfers that the block starts, if stderr is a terminal; Ctrl-C cancels them.

    Yields the ticket that the block's call is to carry: by that they can be cancelled before they
    have begun.
    """
    ticket = secrets.token_hex(16)

    def mine() -> list[dict[str, Any]]:
        return [
            transfer
            for transfer in call("VolumeDriver.Transfers")["Transfers"]
            # an older daemon knows no tickets
            if transfer.get("Ticket", ticket) == ticket
            and (transfer["Operation"], transfer["Volume"]) == (operation, volume)
            and transfer["Host"] in hosts
        ]

    done = threading.Event()
    shower = threading.Thread(target=_show, args=(mine, done), daemon=True)
    if sys.stderr.isatty():
        shower.start()
    try:
        yield ticket
    except KeyboardInterrupt:
        say("ending the transfer…")
        with suppress(ButtervolumeError):
            call("VolumeDriver.Transfers.Cancel", Ticket=ticket)
        _cancel(call, mine)
        raise
    finally:
        done.set()
        if shower.is_alive():
            shower.join()


def _show(mine: Callable[[], list[dict[str, Any]]], done: threading.Event) -> None:
    """Draw one line per transfer until all is done."""
    from tqdm import tqdm  # loaded only for a terminal

    columns = os.get_terminal_size(sys.stderr.fileno()).columns or 80  # some don't know their width
    bars: dict[int, tqdm[Any]] = {}
    while not done.wait(_INTERVAL):
        try:
            transfers = mine()
        except ButtervolumeError:
            continue  # the transfer's own call will tell
        for transfer in transfers:
            number = transfer["Id"]
            if number not in bars:
                bars[number] = tqdm(
                    desc=printable(transfer["Host"]), unit="B", unit_scale=True, ncols=columns
                )
            bars[number].set_postfix_str(printable(transfer["Phase"]), refresh=False)
            bars[number].update(transfer["Bytes"] - bars[number].n)
    for bar in bars.values():
        bar.close()


def _cancel(call: Call, mine: Callable[[], list[dict[str, Any]]]) -> None:
    """Cancel the transfers, and return when they have ended."""
    deadline = time.monotonic() + _END_LIMIT
    while (transfers := mine()) and time.monotonic() < deadline:
        for transfer in transfers:
            try:
                call("VolumeDriver.Transfers.Cancel", Id=transfer["Id"])
            except ButtervolumeError:
                continue  # it has ended meanwhile
        time.sleep(_INTERVAL)
    if not transfers:
        say("the transfer was ended")
