"""`cluster results` as CSV, JSON Lines and Parquet."""

import csv
import io
import json
import sys
import tracemalloc
from datetime import UTC, datetime, timedelta

import asyncpg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.cli import result_export
from cluster.cli.result_export import ResultQuery, write_csv_rows, write_parquet

DAY = datetime(2026, 1, 31, tzinfo=UTC)
INSERT = """
INSERT INTO poll_results (project_id, scheduled_at, polled_at, trigger, status, status_code, response_time_ms,
                          error_code, error_message, dns_ms, connection_reused, remote_address, size_bytes,
                          worker, epoch)
SELECT {project}, '2026-01-31Z'::timestamptz + n * interval '1 second',
       '2026-01-31Z'::timestamptz + n * interval '1 second' + interval '3 ms', 'tick',
       (CASE WHEN n % 2 = 0 THEN 'success' ELSE 'failure' END)::poll_status, 200, 0.1 + n, NULL,
       CASE WHEN n = 1 THEN '=cmd|"x", ünï' WHEN n = 3 THEN E'two\\nlines' END, NULL, n % 2 = 0, '::1', n, 'w', 1
FROM generate_series(0, {count} - 1) n
"""


@pytest.fixture
def results(table):
    table.sql(
        "INSERT INTO projects (name, url) VALUES ('a', 'http://a/'), ('b', 'http://b/')",
        "CREATE TABLE that_day PARTITION OF poll_results FOR VALUES FROM ('2026-01-31Z') TO ('2026-02-01Z')",
        INSERT.format(project=1, count=10),
    )
    return table


def test_csv_has_every_column_and_guards_texts(results):
    out = results("results", "1", "--csv", "--since", "2026-01-31T00:00Z").out
    rows = list(csv.DictReader(io.StringIO(out, newline="")))
    assert [row["size_bytes"] for row in rows] == [str(n) for n in reversed(range(10))]
    columns = results.sql("SELECT * FROM poll_results LIMIT 1")[0][0].keys()
    assert list(rows[0]) == list(columns)
    second = rows[-2]
    assert second["error_message"] == '\'=cmd|"x", ünï'
    assert second["scheduled_at"] == "2026-01-31T00:00:01+00:00"
    assert datetime.fromisoformat(second["polled_at"]) == DAY + timedelta(seconds=1, milliseconds=3)
    assert (second["connection_reused"], second["dns_ms"], second["response_time_ms"]) == ("false", "", "1.1")
    assert rows[-4]["error_message"] == "two\nlines"
    assert out.startswith("project_id,scheduled_at,")
    assert b"\r\n" in out.encode() or "\n" in out


def test_a_time_and_a_number_limit_what_is_written(results):
    lines = results("results", "1", "--json", "--since", "2026-01-31T00:00:02Z", "--until", "2026-01-31T00:00:05Z").out
    assert [json.loads(line)["size_bytes"] for line in lines.splitlines()] == [4, 3, 2]
    assert len(results("results", "1", "--json", "--last", "3").out.splitlines()) == 3
    assert len(results("results", "1", "--csv", "--last", "3", "--since", "2026-01-01").out.splitlines()) == 4
    assert results("results", "1", "--until", "2026-01-01").out == "no results in that time\n"
    assert "00:00:09" in results("results", "1", "--since", "2026-01-31T00:00Z").out.replace(" 0", "T0")


def test_without_limits_twenty_are_shown(results):
    results.sql(INSERT.format(project=2, count=40))
    assert len(results("results", "2", "--json").out.splitlines()) == 20
    assert len(results("results", "2", "--csv").out.splitlines()) == 21
    assert len(results("results", "2", "--csv", "--since", "2026-01-01").out.splitlines()) >= 41


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((), "ID: give one project"), (("1", "2", "--csv"), "ID: give one project"),
        (("1", "--csv", "--json"), "give one of them"), (("1", "--csv", "--parquet", "x"), "give one of them"),
        (("1", "--since", "yesterday"), "--since must be an instant"), (("7", "--csv"), "there is no project 7"),
        (("7", "8", "--parquet", "x.parquet"), "there is no project 7"),
        (("--parquet", "no/such/place"), "there is no directory no/such"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(results, tmp_path, monkeypatch, arguments, error):
    monkeypatch.chdir(tmp_path)
    ran = results("results", *arguments)
    assert ran.status
    assert error in ran.err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_parquet_has_the_types_of_the_table(results, tmp_path):
    results.sql(INSERT.format(project=2, count=5))
    file = tmp_path / "results.parquet"
    ran = results("results", "--parquet", file)
    assert ran.err == f"wrote 15 results to {file}\n"
    read = pq.read_table(file)
    assert read.num_rows == 15
    types = {field.name: field.type for field in read.schema}
    assert types["scheduled_at"] == pa.timestamp("us", tz="UTC")
    assert types["project_id"] == pa.int64()
    assert types["status_code"] == pa.int16()
    assert types["response_time_ms"] == pa.float32()
    assert types["status"] == pa.string()
    assert types["connection_reused"] == pa.bool_()
    rows = sorted(read.to_pylist(), key=lambda row: (row["project_id"], row["scheduled_at"]))
    stored = results.sql("SELECT * FROM poll_results ORDER BY project_id, scheduled_at")[0]
    assert rows == [dict(row) for row in stored]
    assert [each.name for each in tmp_path.iterdir()] == ["results.parquet"]


def test_parquet_of_some_projects_and_a_time(results, tmp_path):
    results.sql(INSERT.format(project=2, count=5))
    file = tmp_path / "results.parquet"
    results("results", "2", "--parquet", file, "--since", "2026-01-31T00:00:02Z")
    assert pq.read_table(file, columns=["project_id", "size_bytes"]).to_pylist() == [
        {"project_id": 2, "size_bytes": n} for n in (2, 3, 4)
    ]
    results("results", "--parquet", file, "--until", "2020-01-01")
    assert pq.read_table(file).num_rows == 0


def test_parquet_comes_in_row_groups(results, tmp_path, monkeypatch):
    results.sql(INSERT.format(project=2, count=1_000))
    monkeypatch.setattr(result_export, "CHUNK_ROWS", 64)
    monkeypatch.setattr(result_export, "ROW_GROUP_ROWS", 256)
    file = tmp_path / "results.parquet"
    assert results("results", "--parquet", file).err == f"wrote 1010 results to {file}\n"
    metadata = pq.ParquetFile(file).metadata
    assert metadata.num_rows == 1_010
    assert metadata.num_row_groups >= 4
    assert max(metadata.row_group(at).num_rows for at in range(metadata.num_row_groups)) <= 256


def test_without_pyarrow_it_is_said_how_to_install_it(results, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    ran = results("results", "--parquet", tmp_path / "x")
    assert ran.status == 2
    assert ran.error == "--parquet: needs pyarrow; install it with pip install 'ringpoll[parquet]'"


class Counted(io.RawIOBase):
    """Takes bytes and keeps none."""

    def __init__(self):
        self.lines = 0

    def write(self, raw):
        self.lines += bytes(raw).count(b"\n")
        return len(raw)


async def test_memory_does_not_grow_with_the_rows(results, tmp_path):
    """Five times the rows take no more memory."""
    results.sql(INSERT.replace("1 second", "1 millisecond").format(project=2, count=30_000))
    conn = await asyncpg.connect(results.url)
    peaks = []
    try:
        for last in (6_000, 30_000):
            out = Counted()
            tracemalloc.start()
            assert await write_csv_rows(conn, ResultQuery((2,), last=last), out) == last
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            assert out.lines > last
        assert peaks[1] < peaks[0] * 1.5
        rows = await write_parquet(conn, ResultQuery((2,)), tmp_path / "x", lambda _count, _total: None)
        assert rows == 30_000
    finally:
        await conn.close()
