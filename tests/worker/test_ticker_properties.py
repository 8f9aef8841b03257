"""The schedule under random lives: against a naive oracle, and against the law that every due tick is accounted once.

A failing example prints its seed; ``play(seed, ...)`` runs it again.
"""

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cluster.messages.control import EndedSpan
from cluster.ticks import last_tick_before, phase_ms
from tests.worker.stage import IDS, START_MS, Actor, Books, busy_entry, spec, tick_after

HOSTS = ("x", "y", "z")
INTERVALS = (700, 1_000, 1_000, 2_000, 5_000)
TIMEOUT_MS = 2_000
HEARD_LATE_MS = 400


# ---- against an oracle ----------------------------------------------------------------------------------------------


class Oracle:
    """The rules as they are written down, one project and one tick at a time; slow and obvious."""

    def __init__(self, specs, slice_, since_ms):
        self.specs = {one.id: one for one in specs}
        self.slice = slice_
        self.line = []  # [project, tick], in the order of the line
        self.running = set()
        self.started = []
        self.missed = []
        self.seen_ms = since_ms

    def advance(self, now_ms):
        """Newest due tick of each project, in the order in which the oldest of them came."""
        due = []
        for project_id, one in self.specs.items():
            phase = phase_ms(project_id, one.interval_ms)
            first = tick_after(self.seen_ms + 1, project_id, one.interval_ms)
            if first > now_ms:
                continue
            newest = last_tick_before(now_ms + 1, phase, one.interval_ms)
            due.append((first, newest, project_id))
        for first, newest, project_id in sorted(
            due, key=lambda entry: (entry[0], entry[2])
        ):  # of one instant: as added
            interval_ms = self.specs[project_id].interval_ms
            self.missed += [(project_id, tick, "overload") for tick in range(first, newest, interval_ms)]
            self.due(project_id, newest)
        self.seen_ms = now_ms
        self.fill()

    def due(self, project_id, tick):
        place = next((entry for entry in self.line if entry[0] == project_id), None)
        if project_id in self.running:
            self.missed.append((project_id, tick, "overrun"))
        elif place is not None:
            self.missed.append((project_id, place[1], "overload"))
            place[1] = tick
        else:
            self.line.append([project_id, tick])

    def fill(self):
        while self.line and len(self.running) < self.slice:
            project_id, tick = self.line.pop(0)
            self.running.add(project_id)
            self.started.append((project_id, tick))

    def finish(self, project_id):
        self.running.remove(project_id)
        self.fill()


@settings(max_examples=120)
@given(
    st.integers(min_value=0, max_value=2**32),
    st.integers(min_value=1, max_value=5),
    st.lists(st.sampled_from(["pass", "pass", "pass", "finish", "finish", "stall", "limit"]), max_size=80),
)
def test_it_does_what_the_oracle_does(seed, slice_, script):
    chance = random.Random(seed)
    specs = [spec(n, chance.choice(INTERVALS)) for n in IDS[:6]]
    actor, oracle, now = Actor("a", slice_), Oracle(specs, slice_, START_MS), START_MS
    actor.grant(specs, now, after=now)
    for step in script:
        match step:
            case "pass":
                now += chance.choice([1, 50, 333, 1_000])
            case "stall":
                now += chance.choice([2_500, 7_001])
            case _:
                pass
        actor.advance(now)
        oracle.advance(now)
        if step == "finish" and actor.flights:
            project_id = chance.choice(sorted(actor.flights))
            actor.finish(project_id, now)
            oracle.finish(project_id)
        if step == "limit":
            oracle.slice = chance.randrange(0, 6)
            actor.limit(now, oracle.slice)
            oracle.fill()
        assert [(start.spec.id, start.scheduled_at_ms) for start in actor.started] == oracle.started
        assert actor.waiting() == dict(oracle.line)
    assert sorted(actor.misses()) == sorted(oracle.missed)


# ---- the law, through every kind of change --------------------------------------------------------------------------


class Play:
    """One partition, two workers that take turns at it, and a world that changes its projects."""

    def __init__(self, seed, *, per_host):
        self.chance = random.Random(seed)
        self.now = START_MS + self.chance.randrange(5_000)
        self.per_host = per_host
        self.actors = [Actor(name, self.chance.randrange(1, 6), per_host) for name in "ab"]
        self.owner = self.actors[0]
        self.cut = None  # while the partition is on its way
        self.books = Books()
        self.epoch = 1
        self.moved = []  # polls that ended at the former owner, not yet told to the new one
        self.immediate = []
        self.unseen = []
        for project_id in IDS[:3]:
            self.books.began(spec(project_id, self.chance.choice(INTERVALS), self.now, "x", TIMEOUT_MS))
        self.owner.grant(self.books.open.values(), self.now, after=self.now - 1)

    @property
    def held(self):
        return self.owner if self.cut is None else None

    def running(self):
        return [(actor, project_id) for actor in self.actors for project_id in actor.flights]

    def pass_time(self, duration_ms):
        """Polls end by their time-out at the latest, at that instant."""
        end = self.now + duration_ms
        while True:
            ends = [
                (began + TIMEOUT_MS, actor.name, project_id)
                for actor in self.actors
                for project_id, (_, began) in actor.flights.items()
            ]
            at, name, project_id = min(ends, default=(end + 1, "", 0))
            if at > end:
                break
            self.now = max(self.now, at)
            self.finish(next(actor for actor in self.actors if actor.name == name), project_id)
        self.now = end
        for actor in self.actors:
            actor.advance(end)

    def finish(self, actor, project_id):
        self.moved += actor.finish(project_id, self.now)

    def step(self, kind):
        chance = self.chance
        project_id = chance.choice(IDS)
        known = self.books.open.get(project_id)
        late = self.now - chance.choice([0, 0, 1, HEARD_LATE_MS]) if self.held else self.now
        match kind:
            case "pass":
                self.pass_time(chance.choice([1, 40, 333, 1_000]))
            case "stall":
                self.pass_time(chance.choice([3_000, 9_001]))
            case "finish" if self.running():
                self.finish(*chance.choice(self.running()))
            case "limit":
                per_host = chance.choice([1, 2, self.per_host]) if self.per_host else 0
                chance.choice(self.actors).limit(self.now, chance.randrange(0, 6), per_host)
            case "add" if known is None:
                if any((each.project_id, each.until_ms) == (project_id, self.now) for each in self.books.ended):
                    self.pass_time(1)  # two transactions are not one instant
                self.books.began(spec(project_id, chance.choice(INTERVALS), self.now, chance.choice(HOSTS), TIMEOUT_MS))
                self.tell(project_id, immediate=True)
            case "remove" if known is not None and known.since_ms < late:
                self.books.stopped(project_id, late)
                if self.held:
                    self.held.remove(project_id, self.now, late)
            case "interval" if known is not None and known.since_ms < late:
                interval_ms = chance.choice([i for i in INTERVALS if i != known.interval_ms])
                self.books.stopped(project_id, late)
                self.books.began(spec(project_id, interval_ms, late, known.url.split("/")[2], TIMEOUT_MS))
                self.tell(project_id)
                if not self.held:
                    self.unseen.append(project_id)
            case "host" if known is not None:
                self.books.began(spec(project_id, known.interval_ms, known.since_ms, chance.choice(HOSTS), TIMEOUT_MS))
                self.tell(project_id)
            case "revoke" if self.held:
                self.cut = self.held.revoke(self.now)
            case "grant" if not self.held:
                self.take_over(chance.choice(self.actors))
            case "settle" if self.moved and self.held:
                self.held.ticker.settle(self.moved, self.now)
                self.held.collect(self.now)
                self.moved = []
            case _:
                return
        self.check()

    def tell(self, project_id, *, immediate=False):
        if self.held:
            self.held.upsert(self.books.open[project_id], self.now, immediate=immediate)
        elif immediate:
            self.immediate.append(project_id)

    def take_over(self, actor):
        cut, self.cut = self.cut, None
        self.epoch += 1
        busy = [entry for entry in cut.busy if entry not in self.moved]
        busy += [
            busy_entry(other, project_id)
            for other, project_id in self.running()
            if other is not actor and busy_entry(other, project_id) not in busy
        ]
        actor.grant(
            self.books.open.values(),
            self.now,
            after=cut.cut_ms,
            epoch=self.epoch,
            waiting=cut.waiting,
            busy=busy,
            immediate=[project_id for project_id in self.immediate if project_id in self.books.open],
            unseen=[project_id for project_id in self.unseen if project_id in self.books.open],
            ended=[EndedSpan(e.project_id, e.since_ms, e.until_ms, e.interval_ms) for e in self.books.ended],
        )
        self.owner = actor
        self.immediate = []
        self.unseen = []

    def check(self):
        running = [project_id for _, project_id in self.running()]
        assert len(running) == len(set(running)), "one poll in flight per project, whoever owns it"
        for actor in self.actors:
            if actor.ticker.per_host:
                for gate in actor.ticker._gates.values():
                    assert gate.active == sum(f.gate is gate for f in actor.ticker.flights.values())

    def close(self):
        if not self.held:
            self.take_over(self.actors[0])
        self.pass_time(0)
        self.books.assert_law(self.actors, self.now)


WORLD = ("pass", "pass", "pass", "stall", "finish", "finish", "limit", "add", "remove", "host")
MOVES = ("revoke", "grant", "grant", "settle", "pass", "pass", "finish")


def play(seed, kinds, length, *, per_host=0):
    one = Play(seed, per_host=per_host)
    for _ in range(length):
        one.step(one.chance.choice(kinds))
    one.close()
    return one


seeds = st.integers(min_value=0, max_value=2**32)
lengths = st.integers(min_value=1, max_value=90)


@settings(max_examples=120)
@given(seeds, lengths)
def test_every_due_tick_is_accounted_for_once(seed, length):
    play(seed, WORLD, length)


@settings(max_examples=120)
@given(seeds, lengths)
def test_moves_lose_and_double_nothing(seed, length):
    """Time, slices and moves alone: no claim is needed, so the books close without any."""
    one = play(seed, ("pass", "pass", "stall", "limit", *MOVES), length)
    polled = [(start.spec.id, start.scheduled_at_ms) for actor in one.actors for start in actor.started]
    assert len(polled) == len(set(polled)), "a planned move never polls a tick twice"
    reasons = {reason for actor in one.actors for _, _, reason in actor.misses()}
    claimed = [
        (project_id, tick)
        for actor in one.actors
        for project_id, tick, reason in actor.misses()
        if reason in ("handover", "down")
    ]
    assert not set(polled) & set(claimed), "a claim on a tick that was polled"
    assert len(claimed) == len(set(claimed))
    assert "down" not in reasons


@settings(max_examples=120)
@given(seeds, lengths)
def test_changes_during_moves_lose_and_double_nothing(seed, length):
    play(seed, WORLD + MOVES, length)


@settings(max_examples=150)
@given(seeds, lengths)
def test_a_change_of_interval_heard_late_loses_and_doubles_nothing(seed, length):
    play(seed, ("pass", "pass", "stall", "limit", "finish", "interval", "interval", "remove", "add"), length)


@settings(max_examples=150)
@given(seeds, lengths)
@example(210, 39)  # back to an earlier interval before the end of its first time was heard of
@example(4061, 21)  # a tick of both spans waits at the cut between them
def test_changes_of_interval_during_moves(seed, length):
    play(seed, (*WORLD, *MOVES, "interval", "interval"), length)


@settings(max_examples=150)
@given(seeds, lengths, st.integers(min_value=1, max_value=3))
def test_a_limit_per_host_holds_up_nobody_for_ever(seed, length, per_host):
    """While hosts change, projects come and go, and limits move: who waits has a reason (checked after every step)."""
    play(seed, WORLD + MOVES, length, per_host=per_host)


def test_a_change_made_before_the_cut_and_heard_after_it():
    """The row changed at 0, its partition was cut at +50, the change was heard at +100, the grant came at +110: the
    ticks of the new grid in between are claimed, since the grant says that the former owner did not see the change."""
    old = Actor("a")
    books = Books()
    first = spec(IDS[0], 5_000)
    books.began(first)
    old.grant([first], START_MS, after=START_MS - 1)
    since = tick_after(START_MS + 6_000, IDS[0], 500) - 10
    old.advance(since)
    for project_id in list(old.flights):
        old.finish(project_id, since)
    cut = old.revoke(since + 50)
    books.stopped(first.id, since)
    books.began(spec(IDS[0], 500, since))
    new = Actor("b")
    ended = [EndedSpan(e.project_id, e.since_ms, e.until_ms, e.interval_ms) for e in books.ended]
    new.grant(books.open.values(), since + 110, after=cut.cut_ms, ended=ended, epoch=2, unseen=[IDS[0]])
    new.advance(since + 400)
    books.assert_law([old, new], since + 400)


@pytest.mark.parametrize("reason", ["handover", "down"])
@pytest.mark.parametrize("gap_ms", [0, 400, 1_000, 12_345])
@pytest.mark.parametrize("interval_ms", INTERVALS)
def test_after_a_death_everything_since_the_mark_is_polled_or_claimed(reason, gap_ms, interval_ms):
    """An owner died without a word: whatever it did after the mark, the successor accounts for every tick since."""
    specs = [spec(project_id, interval_ms) for project_id in IDS]
    mark = START_MS + 7_777
    new = Actor("b")
    new.grant(specs, mark + gap_ms, after=mark, reason=reason)
    new.advance(mark + gap_ms + 3_000)
    accounted = {(start.spec.id, start.scheduled_at_ms) for start in new.started}
    accounted |= {(project_id, tick) for project_id, tick, _ in new.misses()} | set(new.waiting().items())
    due = {
        (one.id, tick)
        for one in specs
        for tick in range(tick_after(mark + 1, one.id, interval_ms), mark + gap_ms + 3_001, interval_ms)
    }
    assert due == accounted
