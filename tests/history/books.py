"""Rollups as they have to be: computed from poll_results, poll by poll, in Python."""

from collections import defaultdict
from datetime import UTC, datetime, timedelta

import pytest

from cluster.rollup_times import DAY, HOUR, MINUTE, floor_to
from cluster.sketch import from_wire, sketch_of
from writer import rollup_steps
from writer.rollup_plan import SUMS

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def at(ms):
    return EPOCH + timedelta(milliseconds=ms)


def ms_of(instant):
    return (instant - EPOCH) // timedelta(milliseconds=1)


class Tally:
    """What some polls say."""

    def __init__(self, polls=()):
        polls = list(polls)
        self.polls = len(polls)
        self.success, self.failure, self.unknown = (
            sum(p["status"] == status for p in polls) for status in ("success", "failure", "unknown")
        )
        self.times_ms = sorted(p["response_time_ms"] for p in polls if p["status"] == "success")

    def row(self):
        times = self.times_ms
        return (
            self.polls, self.success, self.failure, self.unknown, pytest.approx(sum(times)),
            times[0] if times else None, times[-1] if times else None, sketch_of(times),
        )  # fmt: skip

    def quantile(self, share):
        return self.times_ms[int(share * (len(self.times_ms) - 1))] if self.times_ms else None


async def stand_at(conn, instant):
    """As if everything of before an instant had been rolled up."""
    await conn.execute("UPDATE rollup_progress SET rolled_to = $1, claimed_to = $1, next_id = NULL", instant)
    for table, made in SUMS.items():
        await conn.execute(
            "UPDATE rollup_sums SET summed_to = $1, next_id = NULL WHERE name = $2",
            floor_to(made.whole, instant),
            table,
        )


async def sum_all(conn, projects=2):
    """All quarters and weeks that are over."""
    for table, made in SUMS.items():
        while await conn.fetchval(
            "SELECT summed_to + $2::interval <= rolled_to FROM rollup_sums, rollup_progress WHERE name = $1",
            table,
            made.whole,
        ):
            await rollup_steps.sum_chunk(conn, table, projects)


async def polls_of(conn):
    return await conn.fetch(
        "SELECT project_id, scheduled_at AS at, status, response_time_ms FROM poll_results ORDER BY 1, 2"
    )


def grouped(polls, width):
    found = defaultdict(list)
    for poll in polls:
        found[floor_to(width, poll["at"]), poll["project_id"]].append(poll)
    return {key: Tally(some).row() for key, some in found.items()}


async def rollups_of(conn, table):
    rows = await conn.fetch(
        "SELECT at, project_id, polls, success, failure, unknown, sum_ms, min_ms, max_ms, "
        f"numeric_send(sketch) AS sketch FROM {table}"
    )
    return {(row["at"], row["project_id"]): (*tuple(row)[2:-1], from_wire(row["sketch"])) for row in rows}


async def check_rollups(conn):
    """Every rollup is what poll_results makes of it, as far as each project is rolled up; returns how many polls."""
    async with conn.transaction(isolation="repeatable_read"):
        progress = await conn.fetchrow("SELECT * FROM rollup_progress")

        def rolled(poll):
            passed = progress["next_id"] is not None and poll["project_id"] < progress["next_id"]
            return poll["at"] < (progress["claimed_to"] if passed else progress["rolled_to"])

        polls = [poll for poll in await polls_of(conn) if rolled(poll)]
        assert await rollups_of(conn, "rollup_hours") == grouped(polls, HOUR)
        assert await rollups_of(conn, "rollup_days") == grouped(polls, DAY)

        for table, made in SUMS.items():
            sums = await conn.fetchrow("SELECT * FROM rollup_sums WHERE name = $1", table)

            def summed(poll, width=made.whole, sums=sums):
                whole, next_id = floor_to(width, poll["at"]), sums["next_id"]
                passed = whole == sums["summed_to"] and next_id is not None and poll["project_id"] < next_id
                return whole < sums["summed_to"] or passed

            assert await rollups_of(conn, table) == grouped([poll for poll in polls if summed(poll)], made.whole)
        by_minute = await conn.fetch("SELECT at, project_id FROM rollup_hours WHERE by_minute")
        whole = {(row["at"], row["project_id"]) for row in by_minute}
        minutes = {
            (minute, project_id): row
            for (minute, project_id), row in grouped(polls, MINUTE).items()
            if (floor_to(HOUR, minute), project_id) in whole
        }
        kept = {
            (minute, project_id): row
            for (minute, project_id), row in (await rollups_of(conn, "rollup_minutes")).items()
            if (floor_to(HOUR, minute), project_id) in whole
        }
        assert kept == minutes
    return len(polls)
