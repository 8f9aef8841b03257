"""Whose fault failures are, in virtual time."""

from itertools import chain

import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st

from worker.probe.own_fault import (
    STANDS_S,
    UNRELATED_MIN,
    WINDOW_S,
    OwnFaultJudge,
    Suspect,
    is_own_host,
    relations_of,
)


class Court:
    """A judge, the instants at which suspects were ruled upon, and what was ruled."""

    def __init__(self) -> None:
        self.judge: OwnFaultJudge[str] = OwnFaultJudge("could not be reached")
        self.now = 0.0
        self.ruled: dict[str, tuple[float, str | None]] = {}

    def at(self, now: float) -> "Court":
        """Lets time pass, timer by timer."""
        while (due := self.judge.next_timer()) is not None and due <= now:
            self.now = due
            self.judge.handle_timer(due)
            self._take()
        self.now = now
        return self

    def fails(self, name: str, *, took_s: float = 0.0, host: str = "", excuse: str | None = None) -> "Court":
        related = relations_of(host or f"{name}.test", None)
        self.judge.failed(Suspect(name, related, self.now - took_s, self.now), self.now, lambda: excuse)
        return self._take()

    def answers(self) -> "Court":
        self.judge.answered(self.now)
        return self._take()

    def _take(self) -> "Court":
        for item, why in self.judge.rulings:
            assert item not in self.ruled, "ruled once"
            self.ruled[item] = (self.now, why)
        self.judge.rulings.clear()
        return self

    def ours(self) -> set[str]:
        return {name for name, (_, why) in self.ruled.items() if why is not None}

    def theirs(self) -> set[str]:
        return {name for name, (_, why) in self.ruled.items() if why is None}


NAMES = [f"host-{number}" for number in range(2 * UNRELATED_MIN)]
MANY = set(NAMES[:UNRELATED_MIN])


def outage(court: Court, step_s: float = 0.1, took_s: float = 0.0) -> Court:
    for name in sorted(MANY):
        court.fails(name, took_s=took_s).at(court.now + step_s)
    return court


def known_outage(court: Court) -> Court:
    """Known since WINDOW_S after it showed itself."""
    begun_at = court.now
    assert outage(court).at(begun_at + WINDOW_S).ours() == MANY
    return court


def test_many_at_once_without_an_answer_are_ours():
    court = outage(Court().at(100.0))
    assert court.ruled == {}, "those that work must have the time to say so"
    assert court.at(101.0).ours() == MANY
    assert {at for at, _ in court.ruled.values()} == {100.0 + WINDOW_S}
    assert "5 unrelated hosts could not be reached" in court.ruled["host-0"][1]
    assert len(court.judge) == 0


def test_one_too_few_are_theirs_and_are_held_for_less_than_a_second():
    court = Court().at(100.0)
    for name in NAMES[: UNRELATED_MIN - 1]:
        court.fails(name)
    assert court.ruled == {}
    assert court.at(101.0).theirs() == set(NAMES[: UNRELATED_MIN - 1])
    assert {at for at, _ in court.ruled.values()} == {100.0 + WINDOW_S}


def test_many_one_after_the_other_are_theirs():
    assert outage(Court(), step_s=0.3).at(20.0).theirs() == MANY


def test_related_ones_count_once():
    court = Court()
    for number, name in enumerate(NAMES):
        court.fails(name, host=f"w{number}.example.co.uk")
    assert court.at(2.0).theirs() == set(NAMES)


def test_an_answer_at_once_frees_all_that_are_held():
    court = Court().at(50.0)
    for name in NAMES[: UNRELATED_MIN - 1]:
        court.fails(name)
    court.at(50.5).answers()
    assert court.theirs() == set(NAMES[: UNRELATED_MIN - 1]), "and they are delivered in that moment"
    court.at(50.6).fails("host-9")
    assert court.ours() == set(), "it begins anew"


def test_an_answer_just_before_is_no_proof_of_what_comes_after():
    assert outage(Court().at(50.0).answers().at(50.05)).at(51.0).ours() == MANY


def test_an_answer_after_the_last_of_many_frees_all_of_them():
    court = outage(Court().at(50.0), step_s=0.0).at(50.8).answers().at(60.0)
    assert (court.theirs(), court.ours()) == (MANY, set())


def test_time_outs_are_theirs_when_others_answered_while_they_were_waited_for():
    court = Court().at(95.0).answers().at(100.0)
    outage(court, step_s=0.0, took_s=10.0)
    assert (court.theirs(), court.ours()) == (MANY, set())
    assert {at for at, _ in court.ruled.values()} == {100.0}, "and are not held for it"


def test_time_outs_are_ours_when_nobody_answered_while_they_were_waited_for():
    assert outage(Court().at(90.5).answers().at(100.0), step_s=0.0, took_s=10.0).at(101.0).ours() == MANY


def test_while_an_outage_is_known_each_failure_is_ours_at_once():
    court = known_outage(Court().at(100.0)).at(105.0).fails("late")
    assert court.ruled["late"] == (105.0, court.ruled["host-0"][1])


def test_a_target_that_was_dead_before_is_not_excused_by_the_outage():
    court = known_outage(Court().at(99.9).answers().at(100.0))
    assert court.at(102.0).fails("dead", took_s=30.0).theirs() == {"dead"}


def test_an_outage_is_not_taken_for_granted_for_ever():
    court = known_outage(Court().at(100.0))
    court.at(101.0 + STANDS_S).fails("alone").at(200.0)
    assert court.theirs() == {"alone"}


def test_an_outage_that_goes_on_stands():
    court = Court().at(100.0)
    for number in range(200):  # ten a second
        court.at(100.0 + number / 10).fails(f"poll-{number}", host=f"{NAMES[number % len(NAMES)]}.test")
    assert len(court.at(125.0).ours()) == 200


def test_an_answer_ends_an_outage():
    court = known_outage(Court().at(100.0)).at(101.0).answers()
    assert court.at(101.5).fails("own").at(103.0).theirs() == {"own"}


@pytest.mark.parametrize(("failed_at", "is_ours"), [(105.0, True), (111.9, True), (112.1, False)])
def test_what_an_outage_swallowed_needs_as_long_again_to_be_sent_anew(failed_at, is_ours):
    """Begun at 101, lost until 106: sent again by about 111."""
    court = known_outage(Court().at(100.0))
    if failed_at > 106.0:
        court.at(106.0).answers().at(failed_at - 0.01).answers()
    court.at(failed_at).fails("swallowed", took_s=failed_at - 101.0)
    assert ("swallowed" in court.ours()) is is_ours


def test_this_machine_may_know_by_itself():
    court = Court().fails("alone", excuse="no route")
    assert court.ruled == {"alone": (0.0, "no route")}
    court.at(5.0).fails("held").judge.found_out("no name server", 5.1)
    assert court._take().ruled["held"] == (5.0, "no name server")


def test_a_machine_that_knows_of_no_route_is_no_excuse_while_others_answer():
    assert Court().at(5.0).answers().at(6.0).fails("dead", took_s=3.0, excuse="no route").theirs() == {"dead"}


def test_what_is_held_can_be_let_go():
    court = Court().fails("a")
    court.judge.let_go()
    assert court._take().theirs() == {"a"}


# ---- whatever happens ------------------------------------------------------------------------------------------------

PAUSES_S = st.sampled_from([0.0, 0.01, 0.2, 0.5, 1.0, 3.0, 11.0])
TOOK_S = st.sampled_from([0.0, 0.4, 2.0, 9.0])
SINGLE = st.tuples(PAUSES_S, st.just("answer") | st.tuples(st.integers(0, 7), TOOK_S)).map(lambda step: [step])
HOSTS = st.lists(st.integers(0, 7), min_size=UNRELATED_MIN - 1, max_size=8, unique=True)
BURST = st.tuples(HOSTS, st.sampled_from([0.0, 0.1]), TOOK_S).map(
    lambda burst: [(burst[1], (host, burst[2])) for host in burst[0]]
)
STEPS = st.lists(SINGLE | SINGLE | SINGLE | BURST, max_size=30).map(lambda blocks: list(chain.from_iterable(blocks)))


def run(steps) -> tuple[Court, dict[str, tuple[int, float, float]], list[float]]:
    court = Court().at(1_000.0)
    failures: dict[str, tuple[int, float, float]] = {}
    answers = []
    for number, (pause_s, what) in enumerate(steps):
        court.at(court.now + pause_s)
        if what == "answer":
            answers.append(court.now)
            court.answers()
        else:
            host, took_s = what
            failures[f"p{number}"] = (host, court.now - took_s, court.now)
            court.fails(f"p{number}", took_s=took_s, host=f"h{host}.test")
        held = len(court.judge)
        assert held == len(failures) - len(court.ruled)
        assert len(court.judge._witnesses) <= UNRELATED_MIN
    court.at(court.now + 1.0)
    return court, failures, answers


def test_outages_happen_in_what_follows():
    """Also such as have swallowed a poll that fails when they are over."""

    def has_swallowed(steps) -> bool:
        court, failures, answers = run(steps)
        began_at = {name: failures[name][1] for name in court.ours()}
        return any(began_at[name] < at < court.ruled[name][0] - 0.1 for name in began_at for at in answers)

    found = find(STEPS, has_swallowed, settings=settings(database=None, derandomize=True, max_examples=5_000))
    assert run(found)[0].ours()


@given(STEPS)
def test_every_failure_is_ruled_upon_once_and_within_a_second(steps):
    court, failures, _ = run(steps)
    assert court.ruled.keys() == failures.keys()
    for name, (ruled_at, _) in court.ruled.items():
        assert 0.0 <= ruled_at - failures[name][2] <= 1.0


@given(STEPS)
def test_nothing_is_ours_without_many_unrelated_failing_within_a_second(steps):
    court, failures, _ = run(steps)
    if court.ours():
        instants = sorted((failed_at, host) for host, _, failed_at in failures.values())
        assert any(
            len({host for at, host in instants if since <= at <= since + 1.0}) >= UNRELATED_MIN for since, _ in instants
        )


@given(STEPS)
def test_nothing_is_ours_while_others_answer(steps):
    """An answer after each failure, before there are enough: whatever the rest, no outage is ever made of it."""
    calm = []
    for step in steps:
        calm += [step] if step[1] == "answer" else [step, (0.001, "answer")]
    court, failures, _ = run(calm)
    assert court.theirs() == failures.keys()


@given(STEPS)
def test_what_is_ours_was_in_an_outage_that_no_answer_contradicts(steps):
    court, failures, answers = run(steps)
    for name in court.ours():
        _, began_at, failed_at = failures[name]
        ruled_at = court.ruled[name][0]
        speaks_against = [at for at in answers if min(began_at + WINDOW_S, failed_at) < at <= ruled_at]
        if speaks_against:  # rule 1: it began in an outage, which ended not long before it failed
            assert any(failed_at - at <= at - began_at + 1.0 + 1e-6 for at in answers if began_at < at <= failed_at)
        else:
            assert ruled_at - failed_at <= WINDOW_S + 1e-6


# ---- hosts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "is_related"),
    [
        (("a.example.com", None), ("b.example.com", None), True),
        (("example.com", None), ("EXAMPLE.com.", None), True),
        (("example.com", None), ("example.org", None), False),
        (("a.co.uk", None), ("b.co.uk", None), False),
        (("x.a.co.uk", None), ("a.co.uk", None), True),
        (("db1", None), ("db2", None), True),
        (("10.1.2.3", None), ("10.1.9.9", None), True),
        (("10.1.2.3", None), ("10.2.2.3", None), False),
        (("2001:db8::1", None), ("2001:db8:1::1", None), True),
        (("2001:db8::1", None), ("2001:db9::1", None), False),
        (("fe80::1%eth0", None), ("fe80::2", None), True),
        (("a.test", "10.1.2.3"), ("b.example", "10.1.9.9"), True),
        (("a.test", "10.1.2.3"), ("::ffff:10.1.0.1", None), True),
        (("a.test", "10.1.2.3"), ("b.example", "10.2.9.9"), False),
    ],
)
def test_who_is_related(one, other, is_related):
    assert bool(relations_of(*one) & relations_of(*other)) is is_related


@pytest.mark.parametrize(
    ("host", "address", "is_own"),
    [
        ("127.0.0.1", None, True),
        ("::1", None, True),
        ("::ffff:127.0.0.1", None, True),
        ("0.0.0.0", None, True),
        ("localhost", None, True),
        ("a.localhost", None, True),
        ("web.test", "127.0.0.1", True),
        ("web.test", None, False),
        ("web.test", "10.0.0.1", False),
        ("10.0.0.1", None, False),
        ("", None, False),
    ],
)
def test_who_is_on_this_machine(host, address, is_own):
    assert is_own_host(host, address) is is_own
