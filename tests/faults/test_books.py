"""The judges of the fault suite find what is planted: a suite that overlooks a loss is worth nothing."""

import random
from array import array
from collections import defaultdict

import pytest

from tests.faults import books, faults
from tests.faults.gaps import JITTER_S, is_allowed, widest_gap
from tests.faults.request_log import RequestLog
from tests.faults.target import BODIES, RECORD, STALL, body_bytes
from tests.faults.wal_book import SIZE_BITS, WalBook

PROJECT, PROJECT_ID = 3, 77
BEGAN_S = 1_800_000_000.0
POLLS = 1_200  # sizes come round more than twice


def tick_ms(request):
    return round((BEGAN_S + request) * 1000)


class Ledgers:
    """Three books that agree, to be spoiled."""

    def __init__(self, tmp_path):
        self.log = RequestLog(tmp_path / "requests")
        self.log.arrivals[PROJECT] = array("d", [BEGAN_S + n + 0.01 for n in range(POLLS)])
        self.log.delays_s[PROJECT] = 0.0
        self.rows = [books.RowEntry(tick_ms(n), tick_ms(n) + 2, body_bytes(n), "success", "w") for n in range(POLLS)]
        self.wal = WalBook(tmp_path / "wal")
        for n in range(POLLS):
            self.record(n, n)
        self.wal.last_seqs = {"s": 9}
        self.ledger = {"s": 9}
        self.rejected = set()
        self.total = {"doubled": 0, "unexplained": 0, "missed": {"down": 2}}
        self.deaths = []

    def record(self, tick, request):
        self.wal._results[PROJECT_ID].append(tick_ms(tick) << SIZE_BITS | body_bytes(request))

    def forget(self, request):
        """Its result is in no book."""
        gone = self.rows.pop(request)
        self.wal._results[PROJECT_ID].remove(gone.scheduled_ms << SIZE_BITS | body_bytes(request))

    def verdict(self, **destroyed):
        audit = {"total": self.total, "projects": []}
        tables = books.TableBook({PROJECT_ID: self.rows}, self.rejected, self.ledger, audit)
        return books.compare(
            self.log, {PROJECT: PROJECT_ID}, tables, self.wal, self.deaths, books.Destroyed(**destroyed)
        )


@pytest.fixture
def ledgers(tmp_path):
    return Ledgers(tmp_path)


def test_books_that_agree(ledgers):
    verdict = ledgers.verdict()
    assert verdict.wrong() == {}
    assert (verdict.requests, verdict.rows, verdict.in_wal) == (POLLS, POLLS, POLLS)
    assert verdict.missed == {"down": 2}
    assert (verdict.unsaved, verdict.polled_twice) == (0, 0)


def test_a_result_that_is_in_the_wal_only_is_lost(ledgers):
    ledgers.rows.pop(700)
    assert ledgers.verdict().wrong() == {"lost": 1}


def test_what_the_database_refused_is_not_lost_but_shown(ledgers):
    gone = ledgers.rows.pop(700)
    ledgers.rejected.add((PROJECT_ID, gone.scheduled_ms))
    assert ledgers.verdict().wrong() == {"rejected": 1}


def test_an_answer_that_is_in_no_book_is_lost(ledgers):
    ledgers.forget(700)
    verdict = ledgers.verdict()
    assert verdict.wrong() == {"lost": 1}
    assert "request 700" in verdict.examples[0]


@pytest.mark.parametrize(
    ("before_s", "allowed"), [(0.1, True), (-0.05, True), (books.UNSAVED_S + 0.05, False), (-0.5, False)]
)
def test_unless_its_worker_died_before_it_could_be_written(ledgers, before_s, allowed):
    ledgers.forget(700)
    died_at = ledgers.log.arrivals[PROJECT][700] + before_s
    ledgers.deaths.append(books.Death("w", died_at, died_at - 1.5, died_at + 3, died_at))
    verdict = ledgers.verdict()
    assert (verdict.wrong() == {}) is allowed
    assert verdict.unsaved == allowed


def test_what_a_full_disk_did_not_take_dies_with_its_worker(ledgers):
    ledgers.forget(700)
    full_at = ledgers.log.arrivals[PROJECT][700] - 1
    death = books.Death("w", full_at + 4, full_at - 1.5, full_at + 9, full_at)
    ledgers.deaths.append(death)
    assert ledgers.verdict().wrong() == {}
    ledgers.deaths[:] = [death._replace(unwritten_since=death.at)]
    assert ledgers.verdict().wrong() == {"lost": 1}


def poll_again(ledgers, tick, times):
    """That many requests more for a tick, its row is of the first; returns when the first of them came."""
    arrivals = ledgers.log.arrivals[PROJECT]
    began = arrivals[tick] + 0.4
    arrivals[tick + 1 : tick + 1] = array("d", [began + 0.1 * n for n in range(times)])
    later = range(tick + 1, POLLS)
    ledgers.rows[tick + 1 :] = [ledgers.rows[n]._replace(size_bytes=body_bytes(n + times)) for n in later]
    ledgers.wal._results.clear()
    for n in range(POLLS):
        ledgers.record(n, n if n <= tick else n + times)
    for n in range(times):
        ledgers.record(tick, tick + 1 + n)
    return began


@pytest.mark.parametrize(
    ("times", "apart_s", "unasked"), [(1, 0.0, 0), (2, 0.0, 1), (2, 0.3, 0), (3, 0.3, 1), (3, 1.2, 0)]
)
def test_a_tick_polled_twice_needs_a_death_and_once_more_a_clock_that_is_behind(ledgers, times, apart_s, unasked):
    again = poll_again(ledgers, 700, times)
    verdict = ledgers.verdict()
    assert (verdict.polled_twice, verdict.wrong()) == (times, {"unasked": times})
    ledgers.deaths.append(books.Death("w", again - 0.2, again - 1.7, again + 3, again - 0.2, apart_s))
    verdict = ledgers.verdict()
    assert (verdict.polled_twice, verdict.unasked) == (times, unasked)


def test_what_a_test_destroyed_is_excused_and_counted(ledgers):
    results = {(PROJECT_ID, tick_ms(700), body_bytes(700)), (PROJECT_ID, tick_ms(650), body_bytes(650))}
    ledgers.forget(700)
    ledgers.rows.pop(650)
    verdict = ledgers.verdict(results=results)
    assert (verdict.wrong(), verdict.damaged) == ({}, 2)
    ledgers.forget(600)
    assert ledgers.verdict(results=results).wrong() == {"lost": 1}


def test_a_batch_that_a_test_destroyed_need_not_be_committed(ledgers):
    ledgers.ledger["s"] = 7
    assert ledgers.verdict(batches={("s", 8), ("s", 9)}).wrong() == {}
    assert ledgers.verdict(batches={("s", 9)}).wrong() == {"uncommitted": 1}


def test_a_row_nobody_asked_for(ledgers):
    ledgers.rows.append(books.RowEntry(tick_ms(POLLS), tick_ms(POLLS), 0, "success", "w"))
    assert ledgers.verdict().wrong() == {"invented": 1}


def test_two_rows_of_one_request(ledgers):
    ledgers.rows.insert(701, ledgers.rows[700]._replace(scheduled_ms=tick_ms(700) + 5))
    assert ledgers.verdict().wrong() == {"rows_doubled": 1}


def test_a_poll_that_failed_is_shown(ledgers):
    ledgers.rows[5] = ledgers.rows[5]._replace(status="failure")
    assert ledgers.verdict().wrong() == {"not_success": 1}


def test_a_stream_behind_its_wal(ledgers):
    ledgers.ledger["s"] = 8
    assert ledgers.verdict().wrong() == {"uncommitted": 1}
    ledgers.ledger.clear()
    assert ledgers.verdict().wrong() == {"uncommitted": 1}


def test_the_audit_is_heard(ledgers):
    ledgers.total |= {"doubled": 3, "unexplained": 4}
    assert ledgers.verdict().wrong() == {"doubled": 3, "unexplained": 4}


def test_a_size_names_the_nearest_request_that_had_it():
    arrivals = array("d", [BEGAN_S + n for n in range(POLLS)])
    for request in (0, 1, 511, 512, 513, POLLS - 1):
        for off_s in (-60.0, 0.0, 60.0):  # a stepped clock
            assert books.request_of(arrivals, BEGAN_S + request + off_s, body_bytes(request)) == request
    assert books.request_of(arrivals[:3], BEGAN_S, body_bytes(7)) is None
    assert books.request_of(arrivals, BEGAN_S, None) is None
    assert books.request_of(arrivals, BEGAN_S, 0) is None
    assert books.request_of(arrivals, BEGAN_S, BODIES + 1) is None


# ---- the request log ------------------------------------------------------------------------------------------------


def log_of(tmp_path, records):
    path = tmp_path / "requests"
    path.write_bytes(b"".join(RECORD.pack(round(at * 1e9), number, value) for at, number, value in records))
    log = RequestLog(path)
    log._file = path.open("rb")
    try:
        return log.refresh()
    finally:
        log._file.close()


def test_a_gap_is_found_wherever_it_lies(tmp_path):
    times = [0.0, 1.0, 2.0, 5.5, 6.5, 7.5]
    log = log_of(tmp_path, [(at, 1, 0) for at in times])
    assert widest_gap(log, [1], 2.5, 7.5).seconds == 2.5, "it began before the window"
    assert widest_gap(log, [1], 1.0, 4.0).seconds == 2.5, "it ends after the window"
    assert widest_gap(log, [1], 6.0, 7.5).seconds == 0.0
    assert widest_gap(log, [1], 6.0, 12.5).seconds == 4.0, "nothing came any more"
    assert widest_gap(log, [1, 2], 6.0, 9.0) == (2.0, 2, 0.0), "one that was never polled"


def test_what_the_machine_stalled_is_forgiven_and_no_more(tmp_path):
    log = log_of(tmp_path, [(0.0, 1, 0), (1.9, STALL, 400_000), (3.0, 1, 0), (9.0, STALL, 3_000_000)])
    gap = widest_gap(log, [1], 0.0, 3.0)
    assert gap == (2.0, 1, 0.4)
    assert is_allowed(gap, 2.0 - JITTER_S - 0.4)
    assert not is_allowed(gap, 1.9 - JITTER_S - 0.4)
    assert is_allowed(gap, None)


def test_who_was_not_polled_is_named(tmp_path):
    log = log_of(tmp_path, [(1.0, 1, 40_000), (2.0, 1, 40_000), (2.0, 2, 0)])
    assert log.lagging([1, 2, 3], 1.5) == [3]
    assert log.lagging([1, 2, 3], 1.0, 2) == [2, 3]
    assert log.total() == 3
    assert log.delays_s == {1: 0.04, 2: 0.0}


def test_a_fault_has_the_same_shape_from_the_same_seed():
    workers = ["worker-1", "worker-2"]
    plans = [list(map(str, faults.plan(random.Random(5), 60, workers))) for _ in range(2)]
    assert plans[0] == plans[1]
    assert plans[0] != list(map(str, faults.plan(random.Random(6), 60, workers)))
    kinds = defaultdict(int)
    for each in faults.plan(random.Random(5), 100, workers):
        kinds[type(each)] += 1
    assert set(kinds) == set(faults.COMMON + faults.RARER)
    assert not any(each.needs_disk for each in faults.plan(random.Random(5), 100, workers, with_disk=False))
