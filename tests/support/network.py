"""A network for several machines, whose links can be cut, black-holed and slowed down."""

import threading
from contextlib import suppress
from typing import Self

from tests.support.command import run
from tests.support.namespaces import Namespaces
from tests.support.wait import wait_until

SUBNET = "10.213.0"
"""Exists inside the namespaces only."""
INTERFACE = "eth0"
"""What each machine calls its end of the cable."""


class Network:
    """A switch, as a context manager. Machines plug themselves in when they are made with it.

    Everybody knows everybody's hardware address from the start. So a black hole stays a black
    hole: nobody notices by unanswered ARP that the other side is gone.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()  # protects both below: several machines may begin at a time
        self._hosts: dict[str, tuple[int, int]] = {}  # by name: number, process with the namespace
        self._numbers: dict[str, int] = {}  # of those that have ended, too

    def __enter__(self) -> Self:
        self._switch = Namespaces("--net")
        try:
            self._in_switch("ip", "link", "add", "switch", "type", "bridge")
            self._in_switch("ip", "link", "set", "switch", "up")
        except BaseException:
            self._switch.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._switch.close()

    def plug(self, name: str, pid: int) -> str:
        """Connect the network namespace of that process, and return its address, which stays with
        the name."""
        with self._guard:
            return self._plug(name, pid)

    def _plug(self, name: str, pid: int) -> str:
        number = self._numbers.setdefault(name, len(self._numbers) + 1)
        self._pull_out(number)
        cable = ["ip", "link", "add", f"port{number}", "type", "veth", "peer", "name", INTERFACE]
        self._in_switch(*cable, "address", _hardware_address(number), "netns", str(pid))
        self._in_switch("ip", "link", "set", f"port{number}", "master", "switch", "up")
        self._hosts[name] = (number, pid)
        self._in_host(name, "ip", "link", "set", "lo", "up")
        self._in_host(name, "ip", "address", "add", f"{_address(number)}/24", "dev", INTERFACE)
        self._in_host(name, "ip", "link", "set", INTERFACE, "up")
        for host in self._hosts:
            self._introduce_others(host)
        return _address(number)

    def unplug(self, name: str) -> None:
        """Forget a machine that has ended, until another one of its name is plugged in."""
        with self._guard:
            if self._hosts.pop(name, None) is not None:
                self._pull_out(self._numbers[name])

    def _pull_out(self, number: int) -> None:
        """Remove a cable if it is there; the kernel takes it away a moment after the machine."""
        with suppress(AssertionError):
            self._in_switch("ip", "link", "delete", f"port{number}")

        def is_gone() -> bool:
            try:
                self._in_switch("ip", "link", "show", f"port{number}")
            except AssertionError:
                return True
            return False

        wait_until(is_gone, 60, f"port {number} to be free")

    def cut(self, name: str) -> None:
        """Take the machine's link down: it has no route to anybody, and nobody hears from it."""
        self._in_host(name, "ip", "link", "set", INTERFACE, "down")

    def black_hole(self, name: str) -> None:
        """Lose every packet from and to the machine, without a word to anybody."""
        self._in_switch("ip", "link", "set", f"port{self._hosts[name][0]}", "nomaster")

    def restore(self, name: str) -> None:
        """Undo what `cut` and `black_hole` did."""
        number = self._hosts[name][0]
        self._in_switch("ip", "link", "set", f"port{number}", "master", "switch")
        self._in_host(name, "ip", "link", "set", INTERFACE, "up")
        self._introduce_others(name)

    def limit(self, name: str, rate: str) -> None:
        """Let no more than this (`1mbit`) pass to the machine, and as much from it."""
        bucket = ("root", "tbf", "rate", rate, "burst", "32kbit", "latency", "400ms")
        self._in_host(name, "tc", "qdisc", "replace", "dev", INTERFACE, *bucket)
        port = f"port{self._hosts[name][0]}"
        self._in_switch("tc", "qdisc", "replace", "dev", port, *bucket)

    def unlimit(self, name: str) -> None:
        """Undo what `limit` did."""
        self._in_host(name, "tc", "qdisc", "delete", "dev", INTERFACE, "root")
        self._in_switch("tc", "qdisc", "delete", "dev", f"port{self._hosts[name][0]}", "root")

    def _introduce_others(self, name: str) -> None:
        for number, _ in self._hosts.values():
            if number != self._hosts[name][0]:
                neighbour = (_address(number), "lladdr", _hardware_address(number))
                permanent = ("dev", INTERFACE, "nud", "permanent")
                self._in_host(name, "ip", "neighbour", "replace", *neighbour, *permanent)

    def _in_host(self, name: str, *argv: str) -> None:
        _run_in_network_of(self._hosts[name][1], *argv)

    def _in_switch(self, *argv: str) -> None:
        _run_in_network_of(self._switch.pid, *argv)


def _run_in_network_of(pid: int, *argv: str) -> None:
    run("nsenter", f"--net=/proc/{pid}/ns/net", "--", *argv)


def _address(number: int) -> str:
    return f"{SUBNET}.{number}"


def _hardware_address(number: int) -> str:
    return f"02:00:00:00:00:{number:02x}"
