"""When a job runs: every so many minutes, or at the moments of a cron expression in local time."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cached_property, lru_cache

from buttervolume.errors import BadJob

LONGEST_PERIOD = 10 * 366 * 24 * 60
"""Minutes: ten years, more than anybody means."""
_SHIFT = timedelta(hours=3)
"""Longer than a change of summer time shifts a clock."""
_FIELD = re.compile(r"(?:(?<![0-9])[0-9]{1,2}(?![0-9])|[A-Za-z]{3}|[Ll]|[*,/#?-]){1,99}")
"""A cron field. Without some of croniter's own: random moments, and numbers of any size, up to
which it counts before it finds them too large."""
_SOME_DAY = datetime(2026, 1, 1)


@dataclass(frozen=True)
class Every:
    """Every so many minutes, counted from the start of the last success."""

    minutes: int

    def __str__(self) -> str:
        return str(self.minutes)

    @cached_property
    def period(self) -> timedelta:
        """The time between two runs."""
        return timedelta(minutes=self.minutes)

    def first(self, since: datetime) -> datetime:
        """When a job is due that is known since a moment, and never ran: at once."""
        return since

    def after(self, moment: datetime) -> datetime:
        """When a job is due whose last success began at a moment."""
        return moment + self.period


@dataclass(frozen=True)
class Cron:
    """At the moments that five fields of cron name, in local time.

    As in the cron of most systems, a moment that the clock skips in spring comes as much later,
    and one that comes twice in autumn counts once; unless minute or hour begin with `*`: what is to
    happen all the time happens in the repeated hour as well.
    """

    text: str
    zone: tzinfo | None = None
    """None for the machine's own; the tests have others."""

    def __str__(self) -> str:
        return self.text

    def first(self, since: datetime) -> datetime:
        """When a job is due that is known since a moment, and never ran: at its next moment."""
        return self.after(since)

    def after(self, moment: datetime) -> datetime:
        """The first moment of this expression after another one, in UTC."""
        return _after(self, moment)

    def search(self, moment: datetime) -> datetime:
        """The same, without a look at what was found before."""
        wall = self._wall(moment)
        first = self._instant(next(self._walls(wall)), fold=0)
        offsets = {self._offset(m) for m in (moment - _SHIFT, moment, first)}
        if len(offsets) == 1:
            return first
        found: list[datetime] = []
        last = None
        for other in self._walls(wall - _SHIFT):
            instants = [self._instant(other, fold=0)]
            second = self._instant(other, fold=1)
            if self._goes_on_and_on and self._wall(second) == other:  # else it is skipped
                instants.append(second)
            later = [instant for instant in instants if instant > moment]
            found += later
            if later and last is None:
                last = other + _SHIFT
            if last is not None and other > last:
                break
        return min(found)

    @cached_property
    def _goes_on_and_on(self) -> bool:
        return any(field.startswith("*") for field in self.text.split()[:2])

    def _walls(self, start: datetime) -> Iterator[datetime]:
        """What clocks on the wall show at this expression's moments after a start, without end."""
        from croniter import croniter  # a daemon without cron jobs starts sooner without it

        moments = croniter(self.text, start, ret_type=datetime)
        while True:
            yield moments.get_next()

    def _wall(self, moment: datetime) -> datetime:
        return moment.astimezone(self.zone).replace(tzinfo=None)

    def _offset(self, moment: datetime) -> timedelta | None:
        return moment.astimezone(self.zone).utcoffset()

    def _instant(self, wall: datetime, fold: int) -> datetime:
        # not `astimezone`, which takes what the machine's clock skips for an hour sooner
        return datetime.fromtimestamp(wall.replace(tzinfo=self.zone, fold=fold).timestamp(), UTC)


@lru_cache(maxsize=1 << 14)
def _after(cron: Cron, moment: datetime) -> datetime:
    """croniter takes its time, and the same is asked again and again."""
    return cron.search(moment)


When = Every | Cron


def parse_when(text: str) -> When:
    """Understand minutes, or five fields of cron. Raises BadJob."""
    fields = text.split()
    if len(fields) == 5:
        return _parse_cron(fields)
    if text.isascii() and text.isdigit() and len(text) < 10:
        minutes = int(text)
        if 0 < minutes <= LONGEST_PERIOD:
            return Every(minutes)
    raise BadJob(
        f"{text!r}: the minutes must be a whole number from 1 to {LONGEST_PERIOD}, "
        "or five fields of cron, such as '0 3 * * *'"
    )


def _parse_cron(fields: list[str]) -> Cron:
    from croniter import croniter

    text = " ".join(fields)
    try:
        if not all(map(_FIELD.fullmatch, fields)):
            raise ValueError("a field has the form 5, 1-5, */5, 1,15 or mon-fri")
        # newer versions of croniter take such a range, and make of it what nobody means
        if any(int(first) > int(last) for first, last in re.findall(r"(\d+)-(\d+)", text)):
            raise ValueError("a range goes from the lower to the higher number")
        croniter(text, _SOME_DAY).get_next()
    except (ValueError, LookupError, ArithmeticError, AttributeError, TypeError) as error:
        raise BadJob(f"{text!r} is no cron expression that ever comes: {error}") from error
    return Cron(text)
