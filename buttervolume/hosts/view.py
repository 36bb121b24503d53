"""How a followed volume stands on its members: one value, made of what they have said. Nothing here
touches a disk, a clock or another host."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from buttervolume.hosts import follow
from buttervolume.hosts.charter import Charter, Report
from buttervolume.hosts.follow import Copy, Policy, Role, Standing
from buttervolume.human import duration


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


@dataclass(frozen=True)
class View:
    """A followed volume."""

    volume: str
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

    @property
    def forks(self) -> tuple[tuple[str, str], ...]:
        """Each fork that is known of, with the member that keeps it."""
        return tuple((each.name, fork) for each in self.members for fork in each.forks)

    @property
    def problems(self) -> tuple[str, ...]:
        """What somebody should look at."""
        return tuple(self._problems())

    def _problems(self) -> Iterator[str]:
        if self.conflict:
            yield self.conflict
        for each in self.members:
            if each.silent:
                yield f"{each.name} does not answer: {each.silent}"
            elif each.lag > 2 * timedelta(minutes=self.every):
                yield f"{each.name} lacks what came in the last {duration(each.lag)}"
            for fork in each.forks:
                yield f"{fork} on {each.name} is a fork: it is in no other copy"


def see(
    volume: str,
    charter: Charter,
    reports: Mapping[str, Report],
    silent: Mapping[str, str],
    problem: str,
    moment_of: Callable[[str], datetime | None],
    now: datetime,
) -> View:
    """How a volume stands. `reports` may be older than who is `silent` now; `moment_of` says when a
    snapshot was taken, as its name has it, and `now` is local time, too."""
    standings = {name: report.standing for name, report in reports.items()}
    try:
        line = follow.known_line(standings.values())
    except follow.TwoLines as error:
        line, problem = charter.line, str(error)
    copies = [copy for standing in standings.values() for copy in standing.copies]
    on_line = [copy for copy in copies if copy.version in follow.tip(line)]
    return View(
        volume,
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
            )
            for name in charter.members
        ),
        problem,
    )


def _member(
    name: str,
    standing: Standing,
    silent: str,
    forks: tuple[str, ...],
    on_line: list[Copy],
    moment_of: Callable[[str], datetime | None],
    now: datetime,
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
    )


def _order(copy: Copy) -> tuple[int, int]:
    return len(copy.version.line), copy.version.seq
