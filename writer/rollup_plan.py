"""What the rollups need next, decided from where they stand.  Pure.

Time is rolled up in *passes*: all polls from ``rolled_to`` to ``claimed_to``, project by project, in chunks of a
transaction each.  A pass

- begins on a whole minute and ends on one, within a UTC day and within PASS_MAX;
- ends before ``accounted_to``, which says that what was due before it is stored, but does not wait for it for longer
  than PATIENCE: what comes later makes its hours anew;
- is due after a while that follows the load: short for projects that are polled each second, whose polls are then still
  in memory, and up to PERIOD_MAX where a project has hardly any polls in it.

In between: hours that are to be made anew, quarters of days and weeks that are over, rows that were kept long enough.
"""

from datetime import datetime, timedelta
from typing import Literal

import msgspec

from cluster.rollup_times import DAY, HOUR, MINUTE, QUARTER, WEEK, floor_to

MARGIN = timedelta(seconds=2)
PATIENCE = timedelta(minutes=15)
PASS_MAX = HOUR
PERIOD_MIN_S = 60.0
PERIOD_MAX_S = 900.0
POLLS_FEW = 12  # of a project in a pass
POLLS_MANY = 36
EXPIRE_EVERY = HOUR
LOOK_EVERY_S = 10.0
CHUNK_FIRST = 50  # projects
CHUNK_MAX = 5_000
CHUNK_S = 0.1
Table = Literal["rollup_minutes", "rollup_hours", "rollup_quarters", "rollup_days", "rollup_weeks"]
TABLES: tuple[Table, ...] = ("rollup_minutes", "rollup_hours", "rollup_quarters", "rollup_days", "rollup_weeks")


class Sum(msgspec.Struct, frozen=True):
    """Rollups that are made of others once these are complete."""

    source: Table
    part: timedelta
    whole: timedelta


SUMS: dict[Table, Sum] = {
    "rollup_quarters": Sum("rollup_hours", HOUR, QUARTER),
    "rollup_weeks": Sum("rollup_days", DAY, WEEK),
}


class Position(msgspec.Struct, frozen=True):
    """Where the rollups stand, as the database says it."""

    now: datetime
    rolled_to: datetime
    claimed_to: datetime
    next_id: int | None
    summed_to: dict[Table, datetime]
    accounted_to: datetime | None
    kept_from: datetime | None  # of poll_results
    late_since: datetime | None  # the first hour that is to be made anew
    late_due: bool


class Claim(msgspec.Struct, frozen=True):
    """Begin a pass."""

    to: datetime


class Skip(msgspec.Struct, frozen=True):
    """Go on from there: of before it, results are no longer kept."""

    to: datetime


class RollChunk(msgspec.Struct, frozen=True):
    projects: int


class RemakeChunk(msgspec.Struct, frozen=True):
    projects: int


class SumChunk(msgspec.Struct, frozen=True):
    table: Table
    projects: int


class Expire(msgspec.Struct, frozen=True):
    """Delete some rows of before an instant."""

    table: Table
    before: datetime


class Rest(msgspec.Struct, frozen=True):
    seconds: float


Action = Claim | Skip | RollChunk | RemakeChunk | SumChunk | Expire | Rest


class Retention(msgspec.Struct, frozen=True):
    """Days.  What is made from something finer is kept at least as long: of polls, hours; of hours, days."""

    results: int
    minutes: int
    hours: int
    days: int

    def before(self, table: Table, now: datetime) -> datetime:
        """What is older may go: a whole number of days, since days are made from hours."""
        hours = max(self.hours, self.results, self.minutes)
        of_hours = {"rollup_hours": hours, "rollup_quarters": hours}
        keep = {"rollup_minutes": self.minutes, **of_hours}.get(table, max(self.days, hours))
        today = floor_to(DAY, now)
        if table == "rollup_weeks":
            return floor_to(WEEK, today - timedelta(days=keep))
        return today - timedelta(days=keep)


class ChunkSize:
    """How many projects a transaction takes, so that it lasts for about CHUNK_S."""

    def __init__(self) -> None:
        self.projects = CHUNK_FIRST

    def took(self, seconds: float, done: int) -> None:
        if seconds > 2 * CHUNK_S:
            self.projects = max(1, self.projects // 2)
        elif seconds < CHUNK_S and done >= self.projects:
            self.projects = min(CHUNK_MAX, self.projects * 2)


class RollupPlan:
    def __init__(self, retention: Retention) -> None:
        self._retention = retention
        self._sizes = {kind: ChunkSize() for kind in (RollChunk, RemakeChunk, SumChunk)}
        self._period_s = PERIOD_MIN_S
        self._polls = self._projects = 0  # of the pass under way
        self._expire_at: datetime | None = None
        self._expiring: list[Table] = []

    def next(self, position: Position) -> Action:
        if position.next_id is not None:
            return RollChunk(self._sizes[RollChunk].projects)
        if position.kept_from is not None and position.rolled_to < position.kept_from <= position.now:
            return Skip(position.kept_from)
        to = self._end_of_pass(position)
        if to is not None:
            return Claim(to)
        if position.late_due:
            return RemakeChunk(self._sizes[RemakeChunk].projects)
        for table, made in SUMS.items():
            end = position.summed_to[table] + made.whole
            if end <= position.rolled_to and (position.late_since is None or position.late_since >= end):
                return SumChunk(table, self._sizes[SumChunk].projects)
        return self._expire(position.now) or Rest(LOOK_EVERY_S)

    def chunk_done(self, action: RollChunk | RemakeChunk | SumChunk, seconds: float, projects: int, polls: int) -> None:
        self._sizes[type(action)].took(seconds, projects)
        if isinstance(action, RollChunk):
            self._projects += projects
            self._polls += polls

    def pass_done(self) -> None:
        """Passes with few polls of each project are made less often."""
        if self._projects and self._polls < POLLS_FEW * self._projects:
            self._period_s = min(PERIOD_MAX_S, self._period_s * 2)
        elif self._polls > POLLS_MANY * self._projects:
            self._period_s = max(PERIOD_MIN_S, self._period_s / 2)
        self._polls = self._projects = 0

    def expired(self, *, more: bool) -> None:
        if not more:
            self._expiring.pop()

    def _end_of_pass(self, position: Position) -> datetime | None:
        now, begin = position.now, position.rolled_to
        newest = now - MARGIN
        if position.accounted_to is not None and position.accounted_to < newest:
            newest = max(position.accounted_to, now - PATIENCE)
        elif position.accounted_to is None:
            newest = now - PATIENCE
        newest = floor_to(MINUTE, newest)
        if (now - begin).total_seconds() < self._period_s or newest <= begin:
            return None
        return min(newest, begin + PASS_MAX, floor_to(DAY, begin) + DAY)

    def _expire(self, now: datetime) -> Expire | None:
        if self._expire_at is None or now >= self._expire_at or now < self._expire_at - EXPIRE_EVERY:
            self._expire_at = now + EXPIRE_EVERY
            self._expiring = list(TABLES)
        if not self._expiring:
            return None
        table = self._expiring[-1]
        return Expire(table, self._retention.before(table, now))
