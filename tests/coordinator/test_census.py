"""Totals never go back, whoever dies, and are counted once, whoever repeats himself."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.histogram import BUCKETS
from cluster.messages.control import WorkerStats, WriterHeartbeat
from coordinator.census import WRITER_SILENT_MS, Census
from coordinator.events import DurableState


def stats(executed, **missed):
    return WorkerStats(
        executed=executed, success=executed, missed=missed, lateness_counts=[executed] + [0] * (BUCKETS - 1)
    )


def beat(incarnation="w1", rows=0, state="running", duplicates=0, rejects=0):
    return WriterHeartbeat(incarnation, 1, state, rows, duplicates=duplicates, rejects=rejects)


def census():
    return Census(DurableState(), 0)


def test_the_living_and_the_dead_add_up():
    book = census()
    book.heard("a1", stats(10, overload=2))
    book.heard("b1", stats(5, overload=1, down=4))
    book.gone("a1")
    book.heard("a2", stats(3))
    totals = book.totals()
    assert totals.executed == totals.success == 18
    assert totals.missed == {"overload": 3, "down": 4}
    assert totals.lateness_counts[0] == 18


def test_local_causes_add_up_over_the_living_and_the_dead():
    book = census()
    book.heard("a1", WorkerStats(unknown=3, local_causes={"network": 2, "stall": 1}))
    book.heard("b1", WorkerStats(unknown=1, local_causes={"network": 1}))
    book.gone("a1")
    assert book.totals().local_causes == {"network": 3, "stall": 1}
    assert Census(book.durable(), 0).totals().local_causes == {"network": 3, "stall": 1}
    assert book.totals().local_causes == {"network": 3, "stall": 1}, "asking changes nothing"


def test_a_report_that_comes_twice_counts_once():
    book = census()
    book.heard("a1", stats(10))
    book.heard("a1", stats(10))
    book.gone("a1")
    book.gone("a1")
    assert book.totals().executed == 10


def test_asking_changes_nothing():
    book = census()
    book.heard("a1", stats(10, overload=1))
    first = book.totals()
    first.missed["overload"] = 99
    first.lateness_counts[0] = 99
    assert book.totals().missed == {"overload": 1}
    assert book.totals().lateness_counts[0] == 10


def test_whoever_died_while_we_were_away_is_counted():
    book = census()
    book.heard("a1", stats(10))
    book.heard("b1", stats(20))
    successor = Census(book.durable(), 0)
    successor.keep_only({"b1"})
    successor.heard("b1", stats(21))
    assert successor.totals().executed == 31


events = st.lists(
    st.tuples(st.sampled_from(["beat", "die", "restart"]), st.sampled_from("abc"), st.integers(0, 50)), max_size=60
)


@given(events)
def test_totals_never_go_back(script):
    book = census()
    lives = dict.fromkeys("abc", 0)
    executed = dict.fromkeys("abc", 0)
    true_total = 0
    last = 0
    for kind, name, amount in script:
        incarnation = f"{name}{lives[name]}"
        match kind:
            case "beat":
                executed[name] += amount
                true_total += amount
                book.heard(incarnation, stats(executed[name]))
            case "die":
                book.gone(incarnation)
                lives[name] += 1
                executed[name] = 0
            case "restart":
                book = Census(book.durable(), 0)
        now = book.totals().executed
        assert now >= last
        assert now == true_total
        last = now


def test_rows_are_counted_over_incarnations_of_the_writer():
    book = census()
    book.writer_heard(beat("w1", 100, duplicates=2, rejects=1), 0)
    book.writer_heard(beat("w1", 150, duplicates=2, rejects=1), 0)
    book.writer_gone("w1")
    assert book.writer().rows_written == 150
    book.writer_heard(beat("w2", 5, duplicates=1), 0)
    assert (book.writer().rows_written, book.writer().duplicates, book.writer().rejects) == (155, 3, 1)
    assert Census(book.durable(), 0).writer().rows_written == 155


def test_the_writers_state_is_what_it_said_while_it_speaks():
    book = census()
    assert book.writer() is None
    assert book.writer_state(0) == "restarting"
    book.writer_heard(beat(state="waiting_for_database"), 1_000)
    assert book.writer_state(1_000) == "waiting_for_database"
    assert book.writer_state(1_001 + WRITER_SILENT_MS) == "restarting"
    book.forgive(10)
    assert book.writer_state(1_001 + WRITER_SILENT_MS) == "waiting_for_database"
    book.writer_gone("another")
    assert book.writer_silent_ms(1_500) == 490
    book.writer_gone("w1")
    assert book.writer_state(1_001) == "restarting"
    assert book.writer_silent_ms(1_001) is None
