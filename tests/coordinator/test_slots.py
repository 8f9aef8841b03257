"""MAX_CONCURRENT_HTTP is never exceeded: slices as a property over every order of messages."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.slots import SliceBook, split_slots

demands = st.dictionaries(
    st.sampled_from([f"worker-{n}" for n in range(1, 9)]), st.floats(min_value=0, max_value=1e6), min_size=1, max_size=8
)


@given(demands, st.integers(min_value=0, max_value=5_000))
def test_slices_sum_to_the_total_and_nobody_is_without(demand, extra):
    total = len(demand) + extra
    slices = split_slots(total, demand)
    assert set(slices) == set(demand)
    assert sum(slices.values()) == total
    assert min(slices.values()) >= 1


@given(demands, st.integers(min_value=100, max_value=5_000))
def test_who_wants_more_gets_no_less(demand, total):
    slices = split_slots(total, demand)
    for one in demand:
        for other in demand:
            if demand[one] > demand[other]:
                assert slices[one] >= slices[other]


def test_an_idle_worker_keeps_its_floor():
    assert split_slots(400, {"a": 1_000.0, "b": 0.0, "c": 0.0, "d": 0.0})["b"] == 25


def test_without_demand_shares_are_equal():
    assert split_slots(12, dict.fromkeys("abc", 0.0)) == {"a": 4, "b": 4, "c": 4}
    assert split_slots(500, {}) == {}


class Worker:
    """What a worker really does with its slots, and the messages on their way to it."""

    def __init__(self):
        self.slice = 0
        self.in_flight = 0
        self.inbox = []  # Limits not yet arrived: (number, slice)
        self.newest = None  # the Limits it has applied and not yet answered


class Game:
    """A book and its workers; every message may be late, lost with its session, or overtaken by a new plan."""

    def __init__(self, total, seed):
        self.book = SliceBook(total)
        self.workers = {}
        self.sent = {}  # name -> number of the newest Limits
        self.chance = random.Random(seed)
        self.number = 0
        self.lowered = False

    def send(self):
        for name, size in self.book.next_changes().items():
            self.number += 1
            self.sent[name] = self.number
            self.workers[name].inbox.append((self.number, size))
        self.check()

    def check(self):
        self.book.check()
        for name, worker in self.workers.items():
            may_use = max(worker.slice, worker.in_flight)
            assert may_use <= self.book._slices[name].in_force, name
        if not self.lowered:
            assert self.book.in_force() <= self.book.total
            assert sum(max(w.slice, w.in_flight) for w in self.workers.values()) <= self.book.total

    def step(self, kind):
        name = self.chance.choice(sorted(self.workers)) if self.workers else None
        match kind:
            case "join":
                new = f"worker-{self.chance.randrange(1, 7)}"
                if new not in self.workers:
                    self.workers[new] = Worker()
                    self.book.joined(new, 0)
                    self.plan()
            case "die" if name:
                del self.workers[name]
                self.book.gone(name)
                self.plan()
            case "plan":
                self.plan()
            case "arrive" if name and self.workers[name].inbox:
                worker = self.workers[name]
                worker.newest = worker.inbox.pop(0)
                worker.slice = worker.newest[1]
            case "poll" if name:
                worker = self.workers[name]
                worker.in_flight = max(worker.in_flight, self.chance.randint(0, worker.slice))
            case "finish" if name:
                worker = self.workers[name]
                worker.in_flight = self.chance.randint(0, worker.in_flight)
            case "answer" if name:
                worker = self.workers[name]
                if worker.newest is not None and worker.in_flight <= worker.slice:
                    number, _ = worker.newest
                    worker.newest = None
                    if number == self.sent.get(name):
                        self.book.reached(name)
            case "new session" if name:
                worker = self.workers[name]
                worker.inbox.clear()
                worker.newest = None
                self.sent.pop(name, None)
                self.book.resend(name)
            case "coordinator restarts" if name:
                book = SliceBook(self.book.total)
                for each, worker in self.workers.items():
                    worker.inbox.clear()
                    worker.newest = None
                    book.joined(each, max(worker.slice, worker.in_flight))
                self.sent.clear()
                self.book = book
            case _:
                return
        self.send()

    def plan(self):
        members = sorted(self.workers)[: self.book.total]
        if members:
            self.book.want(split_slots(self.book.total, {name: self.chance.random() * 100 for name in members}))


KINDS = ("join", "die", "plan", "plan", "arrive", "arrive", "arrive", "poll", "poll", "finish", "finish", "answer",
         "answer", "answer", "new session", "coordinator restarts")  # fmt: skip


@settings(max_examples=150)
@given(st.integers(min_value=1, max_value=40), st.integers(min_value=0, max_value=2**32), st.integers(20, 150))
def test_the_total_is_never_exceeded(total, seed, length):
    game = Game(total, seed)
    for _ in range(length):
        game.step(game.chance.choice(KINDS))


@settings(max_examples=60)
@given(st.integers(min_value=6, max_value=40), st.integers(min_value=0, max_value=2**32), st.integers(20, 100))
def test_in_the_end_everybody_has_what_it_was_meant_to_have(total, seed, length):
    """Whatever happened before: once messages flow, the slices in force are those wanted, and all slots are used."""
    game = Game(total, seed)
    for _ in range(length):
        game.step(game.chance.choice(KINDS))
    game.step("join")
    game.plan()
    game.send()
    for _ in range(4):
        for worker in game.workers.values():
            worker.in_flight = 0
        for name, worker in game.workers.items():
            while worker.inbox:
                worker.newest = worker.inbox.pop(0)
                worker.slice = worker.newest[1]
            if worker.newest is not None:
                number, _ = worker.newest
                worker.newest = None
                assert number == game.sent[name]
                game.book.reached(name)
        game.send()
    assert {name: worker.slice for name, worker in game.workers.items()} == {
        name: game.book.wanted_of(name) for name in game.workers
    }
    assert sum(worker.slice for worker in game.workers.values()) == total


def test_a_lower_total_takes_effect_by_shrinking_first():
    book = SliceBook(10)
    for name in ("a", "b"):
        book.joined(name, 0)
    book.want({"a": 5, "b": 5})
    assert book.next_changes() == {"a": 5, "b": 5}
    book.total = 4
    book.want({"a": 1, "b": 3})
    assert book.next_changes() == {"a": 1, "b": 3}
    assert book.in_force() == 10, "requests in flight finish"
    book.reached("a")
    assert book.in_force() == 6
    book.reached("b")
    assert book.in_force() == 4


def test_slots_go_to_others_only_after_they_were_given_up():
    book = SliceBook(10)
    book.joined("a", 0)
    book.want({"a": 10})
    assert book.next_changes() == {"a": 10}
    book.joined("b", 0)
    book.want({"a": 5, "b": 5})
    assert book.next_changes() == {"a": 5, "b": 0}
    assert book.next_changes() == {}
    book.reached("a")
    assert book.next_changes() == {"b": 5}


def test_an_answer_to_nothing_changes_nothing():
    book = SliceBook(10)
    book.reached("nobody")
    book.gone("nobody")
    book.resend("nobody")
    book.joined("a", 7)
    book.reached("a")
    assert (book.in_force(), book.slice_of("a"), book.slice_of("nobody")) == (7, 7, 0)
