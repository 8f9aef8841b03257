"""Tickers on a stage: what they start is kept until it is finished, and every tick is accounted for.

``Stage`` holds one or two tickers that share a missed log each, as workers do, and the books of what they did.
"""

from collections import Counter, defaultdict

from cluster.messages.control import BusyProject, EndedSpan
from cluster.project import ProjectSpec
from cluster.ticks import first_tick_from, partition_of, phase_ms
from worker.missed import MissedLog
from worker.ticker import Ticker, host_of

START_MS = 1_700_000_000_000
CLAIMS = ("handover", "down")


def ids_in(partition, count):
    """The first ``count`` project ids of a partition."""
    found = []
    number = 0
    while len(found) < count:
        number += 1
        if partition_of(number) == partition:
            found.append(number)
    return found


P = partition_of(1)
IDS = ids_in(P, 8)


def spec(project_id=1, interval_ms=1_000, since_ms=START_MS, host="host-a", timeout_ms=5_000):
    return ProjectSpec(project_id, f"http://{host}/{project_id}", interval_ms, since_ms, timeout_ms=timeout_ms)


def tick_after(instant_ms, project_id=1, interval_ms=1_000):
    """The first tick of a project at or after an instant."""
    return first_tick_from(instant_ms, phase_ms(project_id, interval_ms), interval_ms)


class Actor:
    """One ticker, what it started, and what it counted missed."""

    def __init__(self, name, slice_=100, per_host=0):
        self.name = name
        self.log = MissedLog()
        self.ticker = Ticker(self.log)
        self.ticker.limit(slice_, per_host, 0)
        self.started = []  # PollStart, in order
        self.missed = []  # (project, tick, reason), in order
        self.ranges = []
        self.flights = {}  # project -> (PollStart, started at)

    def collect(self, now_ms):
        """Take what is to be started, and check the rules that hold at every moment."""
        starts, self.ticker.starts = self.ticker.starts, []
        for start in starts:
            assert start.spec.id not in self.flights, f"{start.spec.id} is in flight already"
            assert start.scheduled_at_ms <= now_ms, "before its time"
            self.flights[start.spec.id] = (start, now_ms)
        self.started += starts
        assert set(self.ticker.flights) == set(self.flights)
        self.ticker.check()
        self.assert_nobody_waits_in_vain()
        return starts

    def assert_nobody_waits_in_vain(self):
        ticker = self.ticker
        if ticker.held_back or ticker.stopped or len(ticker.flights) >= ticker.slice:
            return
        for held in ticker.partitions.values():
            for scheduled in held.projects.values():
                if scheduled.waiting_ms >= 0:
                    full = ticker.per_host and scheduled.gate.active >= ticker.per_host
                    assert full, f"{scheduled.spec.id} waits though there is a slot, and room at {scheduled.gate.host}"

    def advance(self, now_ms):
        self.ticker.advance(now_ms)
        return self.collect(now_ms)

    def finish(self, project_id, now_ms):
        del self.flights[project_id]
        moved = self.ticker.finished([project_id], now_ms)
        self.collect(now_ms)
        return moved

    def grant(self, specs, now_ms, *, after=None, reason="handover", epoch=1, partition=P, waiting=(), busy=(),
              immediate=(), ended=(), unseen=()):  # fmt: skip
        self.ticker.grant(
            partition, epoch, after, reason, list(specs), list(waiting), list(busy), list(immediate), list(ended),
            now_ms, unseen=unseen,
        )  # fmt: skip
        return self.collect(now_ms)

    def revoke(self, now_ms, partition=P):
        cut = self.ticker.revoke(partition, now_ms)
        self.collect(now_ms)
        return cut

    def upsert(self, one, now_ms, *, immediate=False):
        self.ticker.upsert(one, immediate, now_ms)
        return self.collect(now_ms)

    def remove(self, project_id, now_ms, until_ms=None):
        self.ticker.remove(project_id, now_ms if until_ms is None else until_ms, now_ms)
        self.ticker.start_waiting(now_ms)
        self.collect(now_ms)

    def limit(self, now_ms, slice_, per_host=0):
        self.ticker.limit(slice_, per_host, now_ms)
        return self.collect(now_ms)

    def waiting(self):
        return {
            scheduled.spec.id: scheduled.waiting_ms
            for held in self.ticker.partitions.values()
            for scheduled in held.projects.values()
            if scheduled.waiting_ms >= 0
        }

    def misses(self, now_ms=0):
        """Every missed tick so far as (project, tick, reason)."""
        self.ranges += self.log.take(now_ms, everything=True)
        return [
            (entry.project_id, tick, entry.reason)
            for entry in self.ranges
            for tick in range(entry.first_tick_ms, entry.last_tick_ms + 1, entry.interval_ms)
        ]


class Books:
    """Spans as the table has them, and whether every due tick of them is accounted for."""

    def __init__(self):
        self.open = {}  # project -> spec
        self.ended = []

    def began(self, one):
        self.open[one.id] = one

    def stopped(self, project_id, until_ms):
        old = self.open.pop(project_id)
        if until_ms > old.since_ms:
            self.ended.append(EndedSpan(project_id, old.since_ms, until_ms, old.interval_ms))

    def due(self, until_ms):
        """Every tick of every span that is due before ``until_ms``."""
        spans = [(e.project_id, e.since_ms, min(e.until_ms, until_ms), e.interval_ms) for e in self.ended]
        spans += [(s.id, s.since_ms, until_ms, s.interval_ms) for s in self.open.values()]
        return [
            (project_id, tick)
            for project_id, since_ms, end_ms, interval_ms in spans
            for tick in range(tick_after(since_ms, project_id, interval_ms), end_ms, interval_ms)
        ]

    def assert_law(self, actors, now_ms):
        """Due ticks = polled + missed + waiting, each once; claims count where nothing else does, as in the writer."""
        starts = [start for actor in actors for start in actor.started if start.trigger == "tick"]
        polled = Counter((start.spec.id, start.scheduled_at_ms) for start in starts)
        assert all(count == 1 for count in polled.values()), [tick for tick, count in polled.items() if count > 1]
        certain = Counter()
        claimed = set()
        why = defaultdict(list)
        for actor in actors:
            for project_id, tick, reason in actor.misses():
                why[project_id, tick].append(reason)
                if reason in CLAIMS:
                    claimed.add((project_id, tick))
                else:
                    certain[project_id, tick] += 1
        waiting = Counter(item for actor in actors for item in actor.waiting().items())
        for tick in self.due(now_ms + 1):
            count = polled[tick] + certain[tick] + waiting[tick]
            story = f"{tick}: polled {polled[tick]}, waiting {waiting[tick]}, missed {why[tick]}"
            assert count <= 1, f"accounted for twice: {story}"
            assert count == 1 or tick in claimed, f"not accounted for: {story}"


def busy_entry(actor, project_id):
    return BusyProject(project_id, actor.ticker.flights[project_id].until_ms)


__all__ = ["CLAIMS", "IDS", "START_MS", "Actor", "Books", "P", "busy_entry", "host_of", "ids_in", "spec", "tick_after"]
