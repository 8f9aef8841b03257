"""Up or down: the rule, and the tables that follow it, whatever way results are cut into flushes."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.writer.conftest import NOW_MS, S1, S2, flush, part, result
from writer.standing import UP, Thresholds, follow, says_nothing_new
from writer.store import Store

STATUSES = {"s": "success", "f": "failure", "u": "unknown"}


def results_of(text, project_id=1, start=0):
    """'ssf' as three results, a second apart."""
    return [
        result(
            project_id,
            NOW_MS + 1_000 * n,
            status=STATUSES[letter],
            **({"error_code": "reset", "error_message": f"reset at {n}"} if letter == "f" else {}),
        )
        for n, letter in enumerate(text, start=start)
    ]


def seconds(ms):
    return None if ms is None else (ms - NOW_MS) // 1_000


def played(text, down_after=1, up_after=1):
    standing, changes = follow(UP, results_of(text), Thresholds(down_after, up_after))
    return standing, [
        (seconds(each.result.scheduled_at_ms), each.state, seconds(each.began_ms), each.polls) for each in changes
    ]


# ---- the rule -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "down_after", "up_after", "state", "streak", "changes"),
    [
        ("", 1, 1, "up", 0, []),
        ("ssss", 1, 1, "up", 0, []),
        ("ssf", 1, 1, "down", 0, [(2, "down", 2, 1)]),
        ("ffff", 1, 1, "down", 0, [(0, "down", 0, 1)]),
        ("fsfs", 1, 1, "up", 0, [(0, "down", 0, 1), (1, "up", 1, 1), (2, "down", 2, 1), (3, "up", 3, 1)]),
        ("sff", 3, 1, "up", 2, []),
        ("sfff", 3, 1, "down", 0, [(3, "down", 1, 3)]),
        ("ffsff", 3, 1, "up", 2, []),
        ("ffuf", 3, 1, "down", 0, [(3, "down", 0, 3)]),
        ("uuuu", 1, 1, "up", 0, []),
        ("fss", 1, 2, "up", 0, [(0, "down", 0, 1), (2, "up", 1, 2)]),
        ("fsfsus", 1, 2, "up", 0, [(0, "down", 0, 1), (5, "up", 3, 2)]),
    ],
)
def test_so_many_in_a_row_change_the_state(text, down_after, up_after, state, streak, changes):
    standing, found = played(text, down_after, up_after)
    assert (standing.state, standing.streak, found) == (state, streak, changes)


results = st.text("sfu", max_size=30)
runs = st.integers(1, 4)


@given(results, runs, runs, st.integers(0, 30))
def test_a_standing_carries_over(text, down_after, up_after, cut):
    thresholds = Thresholds(down_after, up_after)
    whole = follow(UP, results_of(text), thresholds)
    standing, changes = follow(UP, results_of(text[:cut]), thresholds)
    standing, more = follow(standing, results_of(text[cut:], start=len(text[:cut])), thresholds)
    assert (standing, changes + more) == whole


@given(results, runs, runs)
def test_what_says_nothing_new_changes_nothing(text, down_after, up_after):
    thresholds = Thresholds(down_after, up_after)
    standing = UP
    for each in results_of(text):
        after, changes = follow(standing, [each], thresholds)
        if says_nothing_new(None if standing.is_settled_up else standing, each):
            assert (after, changes) == (standing, [])
        standing = after


# ---- the tables -----------------------------------------------------------------------------------------------------


async def add_project(tables, project_id=1, down_after=1, up_after=1):
    await tables.conn.execute(
        "INSERT INTO projects (id, url, down_after, up_after) VALUES ($1, 'http://h/', $2, $3)",
        project_id,
        down_after,
        up_after,
    )


async def states(tables):
    rows = await tables.conn.fetch(
        "SELECT project_id, state, (extract(epoch FROM since) * 1000)::bigint AS since, streak FROM project_states "
        "ORDER BY 1"
    )
    return {row[0]: (row[1], seconds(row[2]), row[3]) for row in rows}


async def changes_in(tables):
    rows = await tables.conn.fetch(
        "SELECT project_id, (extract(epoch FROM changed_at) * 1000)::bigint AS at, state, "
        "(extract(epoch FROM began_at) * 1000)::bigint AS began, polls, error_message FROM state_changes ORDER BY 1, 2"
    )
    return [(row[0], seconds(row[1]), row[2], seconds(row[3]), row[4], row[5]) for row in rows]


async def commit(store, *texts, stream=S1, base_seq=0, start=0):
    """Each text is a batch and a flush of its own, and follows the one before."""
    for seq, text in enumerate(texts, start=base_seq + 1):
        await store.commit(flush(part(seq, results_of(text, start=start), stream=stream)))
        start += len(text)


async def test_the_tables_tell_when_and_why(store, tables):
    await add_project(tables, down_after=2, up_after=2)
    await commit(store, "ssf", "f", "fs", "s")
    assert await states(tables) == {1: ("up", 5, 0)}
    assert await changes_in(tables) == [(1, 3, "down", 2, 2, "reset at 3"), (1, 6, "up", 5, 2, None)]


async def test_a_project_that_never_failed_has_no_row(store, tables):
    await add_project(tables)
    await commit(store, "sss", "us")
    assert await states(tables) == {}
    assert await changes_in(tables) == []


async def test_late_results_do_not_turn_the_state_back(store, tables):
    await add_project(tables)
    await commit(store, "ff", start=10)
    await commit(store, "ssss", stream=S2, start=0)
    assert await states(tables) == {1: ("down", 10, 0)}
    await commit(store, "s", stream=S1, base_seq=1, start=12)
    await commit(store, "f", stream=S2, base_seq=1, start=4)
    assert await states(tables) == {1: ("up", 12, 0)}
    assert [change[1:3] for change in await changes_in(tables)] == [(10, "down"), (12, "up")]


async def test_another_writer_goes_on_where_the_first_stopped(store, tables, database_url):
    await add_project(tables, down_after=3)
    await commit(store, "sff")
    other = Store(database_url, retention_days=90, wall_ms=lambda: NOW_MS)
    try:
        await commit(other, "f", base_seq=1, start=3)
        assert await states(tables) == {1: ("down", 1, 0)}
        await commit(other, "s", base_seq=2, start=4)
    finally:
        await other.close()
    assert [change[1:5] for change in await changes_in(tables)] == [(3, "down", 1, 3), (4, "up", 4, 1)]


async def test_results_that_come_twice_count_once(store, tables):
    await add_project(tables, down_after=3)
    await commit(store, "ff")
    outcome = await store.commit(flush(part(1, results_of("ff"), stream=S2)))
    assert outcome.duplicates == 2
    assert await states(tables) == {1: ("up", None, 2)}


async def test_what_a_transaction_that_failed_had_found_is_forgotten(store, tables, monkeypatch):
    await add_project(tables, down_after=2)
    await commit(store, "f")
    await tables.conn.execute("ALTER TABLE state_changes ADD CONSTRAINT refused CHECK (state <> 'down') NOT VALID")
    with pytest.raises(Exception, match="refused"):
        await commit(store, "f", base_seq=1, start=1)
    await tables.conn.execute("ALTER TABLE state_changes DROP CONSTRAINT refused")
    await commit(store, "f", base_seq=1, start=1)
    assert await states(tables) == {1: ("down", 0, 0)}
    assert len(await changes_in(tables)) == 1


async def test_a_deleted_project_has_no_state(store, tables):
    await add_project(tables)
    await commit(store, "f")
    await tables.conn.execute("DELETE FROM projects WHERE id = 1")
    assert await states(tables) == {}
    await commit(store, "sf", base_seq=1, start=1)
    assert await states(tables) == {}


async def test_many_projects_in_one_flush(store, tables):
    texts = ["".join(each) for each in itertools.product("sfu", repeat=4)]
    await tables.conn.execute(
        "INSERT INTO projects (id, url, down_after, up_after) SELECT n, 'http://h/', 2, 2 "
        "FROM generate_series(1, $1::int) n",
        len(texts),
    )
    for seq, letters in ((1, slice(0, 2)), (2, slice(2, 4))):
        batch = [
            each
            for project_id, text in enumerate(texts, start=1)
            for each in results_of(text[letters], project_id, start=letters.start)
        ]
        await store.commit(flush(part(seq, batch)))
    expected = {}
    for project_id, text in enumerate(texts, start=1):
        standing, _ = played(text, 2, 2)
        expected[project_id] = standing
    found = await states(tables)
    for project_id, standing in expected.items():
        shown = (standing.state, seconds(standing.since_ms), standing.streak)
        assert found.get(project_id, ("up", None, 0)) == shown, texts[project_id - 1]


@pytest.mark.parametrize("seed", range(10))
async def test_whatever_the_order_of_arrival_the_newest_result_says_how_it_stands(store, tables, seed):
    rng = random.Random(seed)
    text = "".join(rng.choice("sf") for _ in range(12))
    await add_project(tables)
    arrivals = results_of(text)
    rng.shuffle(arrivals)
    for seq, each in enumerate(arrivals, start=1):
        await store.commit(flush(part(seq, [each])))
    found = await states(tables)
    assert found.get(1, ("up", None, 0))[0] == ("up" if text[-1] == "s" else "down"), (text, arrivals)
