"""Sketches: merging is the sketch of the union, quantiles are within the stated error, PostgreSQL's are the same."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.rollup_sql import weights_of
from cluster.sketch import (
    BOUNDS_MS,
    BUCKETS,
    COUNT_MAX,
    HIGHEST_MS,
    LOWEST_MS,
    RELATIVE_ERROR,
    bucket_of,
    from_wire,
    merge,
    quantiles,
    quantiles_of_wire,
    sketch_of,
    to_numeric,
)

SHARES = (0.0, 0.25, 0.5, 0.9, 0.95, 0.99, 1.0)
times_ms = st.floats(0, 2 * HIGHEST_MS, width=32)
lists = st.lists(times_ms, max_size=50)
counts = st.dictionaries(st.integers(0, BUCKETS - 1), st.integers(1, COUNT_MAX // 4), max_size=30)


@given(lists, lists, lists)
def test_merging_is_the_sketch_of_the_union_in_any_order(a, b, c):
    one, two, three = map(sketch_of, (a, b, c))
    assert merge([one, two, three]) == sketch_of(a + b + c)
    assert merge([merge([one, two]), three]) == merge([one, merge([two, three])]) == merge([three, two, one])
    assert merge([one, {}]) == one
    assert merge([]) == {}


@given(st.lists(st.floats(LOWEST_MS, HIGHEST_MS), min_size=1, max_size=200))
def test_quantiles_are_within_the_error(values):
    values.sort()
    for share, found in zip(SHARES, quantiles(sketch_of(values), SHARES), strict=True):
        exact = values[int(share * (len(values) - 1))]
        assert abs(found - exact) <= RELATIVE_ERROR * exact * (1 + 1e-9)


def test_the_ends():
    assert quantiles({}, SHARES) == [None] * len(SHARES)
    assert quantiles(sketch_of([0.0, 0.05]), (0.5,)) == [LOWEST_MS]
    assert quantiles(sketch_of([1e9]), (0.5,)) == [BOUNDS_MS[-1]]
    assert BOUNDS_MS[-1] >= HIGHEST_MS
    for n, bound in enumerate(BOUNDS_MS):
        assert (bucket_of(math.nextafter(bound, 0)), bucket_of(bound)) == (n, n + 1)


async def test_postgresql_has_a_weight_for_each_bucket(conn):
    rows = await conn.fetch("SELECT bucket, weight FROM rollup_weights ORDER BY bucket")
    assert [row["bucket"] for row in rows] == list(range(500))
    assert len(rows) >= BUCKETS
    assert all(int(row["weight"]) == to_numeric({row["bucket"]: 1}) for row in rows)


async def test_postgresql_makes_the_same_sketches(conn):
    """Of values at, right before and right behind every bound, too."""
    values = [0.0, 1e6, 0.3, 17.0, 17.0, 250.5]
    values += [each for bound in BOUNDS_MS for each in (math.nextafter(bound, 0), bound, math.nextafter(bound, 1e9))]
    await conn.execute("CREATE TEMP TABLE r (n int, status text, response_time_ms float8)")
    await conn.copy_records_to_table("r", records=[(n, "success", value) for n, value in enumerate(values)])
    sent = await conn.fetchval(f"SELECT numeric_send(sum(w.weight)) FROM r {weights_of('$1::float8[]')}", BOUNDS_MS)
    assert from_wire(sent) == sketch_of(values)
    halves = await conn.fetchval(
        "SELECT numeric_send(sum(sketch)) FROM (SELECT sum(w.weight) AS sketch "
        f"FROM r {weights_of('$1::float8[]')} GROUP BY n % 7) s",
        BOUNDS_MS,
    )
    assert halves == sent
    assert quantiles_of_wire(sent, SHARES) == quantiles(sketch_of(values), SHARES)


@pytest.fixture
def as_sent(conn):
    async def send(sketch):
        return await conn.fetchval("SELECT numeric_send($1::text::numeric)", str(to_numeric(sketch)))

    return send


@pytest.mark.parametrize(
    "sketch",
    [
        {}, {0: 1}, {0: 9_999}, {0: 10_000}, {0: 20_000}, {7: COUNT_MAX}, {7: 10_000}, {7: 1, 8: 1},
        {0: 1, BUCKETS - 1: 1}, {3: 10_000, 5: 1}, {3: 1, 5: 10_000}, {3: 12_345_678, 4: 1, 9: 87_654_321},
        {4: 50_000, 6: 40_000},
    ],
    ids=str,
)  # fmt: skip
async def test_what_is_sent_is_read(as_sent, sketch):
    sent = await as_sent(sketch)
    assert from_wire(sent) == sketch
    assert quantiles_of_wire(sent, SHARES) == quantiles(sketch, SHARES)


async def test_whatever_is_sent_is_read(conn):
    made = []

    @given(counts)
    def draw(sketch):
        made.append(sketch)

    draw()
    rows = await conn.fetch(
        "SELECT numeric_send(t.text::numeric) FROM unnest($1::text[]) AS t(text)", [str(to_numeric(s)) for s in made]
    )
    for sketch, (sent,) in zip(made, rows, strict=True):
        assert from_wire(sent) == sketch
        assert quantiles_of_wire(sent, SHARES) == quantiles(sketch, SHARES)


def test_no_sketch_is_an_empty_one():
    assert from_wire(None) == {}
    assert quantiles_of_wire(None, (0.5, 0.9)) == [None, None]
