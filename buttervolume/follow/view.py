"""How a followed volume stands on its members: one value, made of what they have said. Nothing here
touches a disk, a clock or another host."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from buttervolume.follow import machine
from buttervolume.follow.charter import Charter, Report
from buttervolume.follow.machine import Copy, Policy, Role, Standing
from buttervolume.human import duration

_MANY = 400
"""Epochs: an attribute has little room for more (see `charter`)."""


@dataclass(frozen=True)
class MemberView:
    """One member, as it was heard last."""

    name: str
    silent: str
    """Why it did not answer when it was asked last; empty if it did."""
    role: Role
    in_use: bool
    copy: str | None
    """Its newest snapshot that the others go on with."""
    taken: datetime | None
    """When that was taken, local time."""
    lag: timedelta
    """For how long there has been a newer one that it has not got."""
    forks: tuple[str, ...]
    """The snapshots that it keeps of what the others do not go on with."""
    was_asked: bool
    """Whether anybody has asked it since the start; it answered then, or is silent."""
    failure: str
    """Why it did not get what the owner sent it last, if that is this host; empty if it did."""

    @property
    def is_known(self) -> bool:
        """Whether it is known what it has, even if only from some time ago."""
        return self.was_asked and (self.copy is not None or not self.silent)


@dataclass(frozen=True)
class Concern:
    """Something that somebody should look at."""

    is_fork: bool
    """Whether members have gone on apart; else one lacks what the others have, or may."""
    member: str
    """Empty for the whole volume."""
    message: str
    fork: str = ""
    """The snapshot, if it is about one."""


@dataclass(frozen=True)
class View:
    """A followed volume."""

    volume: str
    me: str
    """The member that this host is."""
    owner: str | None
    """None as long as nobody has used it."""
    epoch: int
    """How many there have been."""
    epoch_id: str | None
    policy: Policy
    every: int
    """Minutes."""
    members: tuple[MemberView, ...]
    """In the order of their names."""
    conflict: str
    """What is wrong beside what the members show, such as two lines; empty if nothing is."""
    is_apart: bool
    """Whether that is that members have gone on apart."""

    @property
    def is_owner(self) -> bool:
        """Whether this host owns it, as far as it has heard."""
        return self.owner == self.me and any(
            each.name == self.me and each.role is Role.OWNER for each in self.members
        )

    @property
    def forks(self) -> tuple[tuple[str, str], ...]:
        """Each fork that is known of, with the member that keeps it."""
        return tuple((each.name, fork) for each in self.members for fork in each.forks)

    @property
    def problems(self) -> tuple[str, ...]:
        """What somebody should look at."""
        return tuple(concern.message for concern in self.concerns)

    @property
    def concerns(self) -> tuple[Concern, ...]:
        """The same, told apart."""
        return tuple(self._concerns())

    def _concerns(self) -> Iterator[Concern]:
        if self.conflict:
            yield Concern(self.is_apart, "", self.conflict)
        if self.epoch > _MANY:
            yield Concern(
                False, "", f"it has changed hands {self.epoch:,} times, and there is room for some "
                "500: let a copy of it follow in its place (see the manual)",
            )  # fmt: skip
        for each in self.members:
            name = each.name
            if each.silent and each.was_asked:
                yield Concern(False, name, f"{name} does not answer: {each.silent}")
            elif each.failure:
                yield Concern(False, name, f"{name} did not get what is new: {each.failure}")
            elif each.was_asked and each.lag > 2 * timedelta(minutes=self.every):
                lacks = f"{name} lacks what came in the last {duration(each.lag)}"
                yield Concern(False, name, lacks)
            if each.role is Role.SUPERSEDED and each.in_use and name != self.me:
                used = f"{name} still uses it, though {self.owner} has taken it over"
                yield Concern(True, name, used)
            for fork in each.forks:
                kept = f"{fork} on {name} is a fork: it is in no other copy"
                yield Concern(True, name, kept, fork)


def see(
    volume: str,
    charter: Charter,
    reports: Mapping[str, Report],
    silent: Mapping[str, str],
    problem: str,
    moment_of: Callable[[str], datetime | None],
    now: datetime,
    *,
    me: str,
    failures: Mapping[str, str],
) -> View:
    """How a volume stands. `reports` may be older than who is `silent` now; `moment_of` says when a
    snapshot was taken, as its name has it, and `now` is local time, too. `failures` says who did
    not get what this host, `me`, sent it last, and why."""
    standings = {name: report.standing for name, report in reports.items()}
    try:
        line = machine.known_line(standings.values())
        is_apart = me in standings and standings[me].role is Role.SUPERSEDED
    except machine.TwoLines as error:
        line, problem, is_apart = charter.line, str(error), True
    copies = [copy for standing in standings.values() for copy in standing.copies]
    on_line = [copy for copy in copies if copy.version in machine.tip(line)]
    return View(
        volume,
        me,
        line[-1].owner if line else None,
        len(line),
        line[-1].id if line else None,
        charter.policy,
        charter.every,
        tuple(
            _member(
                name,
                standings.get(name, Standing(name)),
                silent.get(name, "" if name in reports else "it was not asked yet"),
                reports[name].forks if name in reports else (),
                on_line,
                moment_of,
                now,
                was_asked=name in reports or name in silent,
                failure=failures.get(name, ""),
            )
            for name in charter.members
        ),
        problem,
        is_apart,
    )


def _member(
    name: str,
    standing: Standing,
    silent: str,
    forks: tuple[str, ...],
    on_line: list[Copy],
    moment_of: Callable[[str], datetime | None],
    now: datetime,
    *,
    was_asked: bool,
    failure: str,
) -> MemberView:
    own = max((copy for copy in on_line if copy.member == name), key=_order, default=None)
    newer = [copy for copy in on_line if own is None or _order(copy) > _order(own)]
    moments = [moment for copy in newer if (moment := moment_of(copy.snapshot))]
    return MemberView(
        name,
        silent,
        standing.role,
        standing.in_use,
        own.snapshot if own else None,
        moment_of(own.snapshot) if own else None,
        max(timedelta(), now - min(moments)) if moments else timedelta(),
        forks,
        was_asked,
        failure,
    )


def _order(copy: Copy) -> tuple[int, int]:
    return len(copy.version.line), copy.version.seq
