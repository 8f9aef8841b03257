"""``cluster plan`` on the command line."""

import json

import pytest

from cluster.cli import render


def test_a_plan_for_people(cluster, data_dir):
    ran = cluster("plan", "--projects", "10000", "--interval", "5m", "--latency", "3s", "--retention-days", "7")
    assert (ran.status, ran.err) == (0, "")
    assert "cluster up --workers 2 --max-concurrent-http 500 --retention-days 7\n" in ran.out
    assert "they carry 50,000 projects" in ran.out
    assert list(data_dir.iterdir()) == []


def test_a_plan_for_programs(cluster):
    ran = cluster("plan", "--group", "10000:5m:3s", "--group", "5000:30s:200ms", "--json")
    assert (ran.status, ran.err) == (0, "")
    document = json.loads(ran.out)
    assert document["projects"] == 15_000
    assert document["polls_per_s"] == pytest.approx(200.0)
    assert document["options"] == {"workers": 2, "max_concurrent_http": 667, "retention_days": 90}
    assert document["machine"]["cores"] >= 1
    assert document["machine"]["disk_free_bytes"] > 0
    assert isinstance(document["warnings"], list)


def test_the_disk_of_a_database_elsewhere_is_not_judged(cluster, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://me@127.0.0.1:1/x")
    document = json.loads(cluster("plan", "--projects", "1000000", "--interval", "1s", "--json").out)
    assert document["machine"]["disk_free_bytes"] is None
    assert not any("free here" in each for each in document["warnings"])


def test_options_and_groups_are_one_load(cluster):
    document = json.loads(cluster("plan", "--projects", "1", "--group", "2:1m:1s", "--json").out)
    assert document["projects"] == 3
    assert document["polls_per_s"] == pytest.approx(1 / 30 + 2 / 60)


def test_it_fits_on_eighty_columns(cluster, monkeypatch):
    monkeypatch.setattr(render, "PIPE_COLUMNS", 80)
    ran = cluster("plan", "--projects", "10000000", "--interval", "1s", "--latency", "10m")
    assert ran.status == 0
    assert all(len(line.rstrip()) <= 80 for line in ran.out.splitlines()), ran.out
    assert all(f"\n {name} " in ran.out for name in ("in flight, mean", "files per worker", "table, 90 days"))
    assert "Warning: 6,000,000,000 requests would be in flight on average" in ran.out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((), "Give --projects or --group."),
        (("--projects", "0"), "'--projects'"),
        (("--projects", "10000001"), "'--projects'"),
        (("--projects", "many"), "'--projects'"),
        (("--projects", "1", "--interval", "0s"), "--interval must be a duration from 1s to 31536000s"),
        (("--projects", "1", "--interval", "soon"), "not 'soon'"),
        (("--projects", "1", "--latency", "fast"), "--latency must be a number with ms, s or m"),
        (("--projects", "1", "--latency", "0ms"), "--latency must be from 1ms to 600000ms, not '0ms'"),
        (("--projects", "1", "--latency", "11m"), "--latency must be from 1ms to 600000ms, not '11m'"),
        (("--projects", "1", "--retention-days", "0"), "--retention-days must be an integer from 1 to 36500"),
        (("--group", "5000:30s"), "--group must be N:INTERVAL:LATENCY such as 5000:5m:3s, not '5000:30s'"),
        (("--group", "0:30s:1s"), "--group must begin with a number from 1 to 10000000, not '0'"),
        (("--group", "5:never:1s"), "--group: its interval must be a duration"),
        (("--group", "5:30s:slow"), "--group: its latency must be a number with ms, s or m"),
        (("--group", "1:1s:1s") * 101, "--group may be given 100 times"),
    ],
)
def test_bad_input_is_one_line(cluster, arguments, complaint):
    ran = cluster("plan", *arguments)
    assert (ran.status, ran.out) == (2, "")
    assert complaint in ran.error
