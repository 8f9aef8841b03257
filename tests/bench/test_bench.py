"""Small versions of the benchmarks: that they run, that what they report adds up, and that nothing broke meanwhile.

No speed is asserted: it is the machine's, and whoever else uses it.
"""

import asyncio
import io
import socket

import msgspec
import pytest
from rich.console import Console

from cluster.bench import rig
from tests.bench import api, engine, million, pipeline, replay, stages, wal
from tests.bench.figures import write_figures

pytestmark = pytest.mark.bench
DEADLINE_S = 20.0


async def test_a_load_of_many_projects_reports_memory_and_lag():
    words = ["--projects", "20000", "--workers", "2", "--interval-hours", "24", "--rest-seconds", "4"]
    measured = await million.main(million.arguments_of(words), Console(file=io.StringIO()))

    assert measured.incidents == []
    assert 0 < measured.loaded_s <= measured.assigned_s <= measured.held_s
    assert measured.bytes_per_project["workers"] > 0
    assert measured.bytes_per_project["coordinator"] > 0
    assert measured.polls_per_s_due == pytest.approx(20_000 / 86_400, abs=0.1)
    assert measured.reload_s > 0
    assert all(set(each) == {"workers", "coordinator"} for each in (measured.lag_ms_loading, measured.lag_ms_at_rest))
    for lag in (measured.lag_ms_loading["coordinator"], measured.lag_ms_at_rest["workers"]):
        assert lag["samples"] > 0
        assert lag["p50"] <= lag["p99"]
    assert len(measured.verdicts) == 6
    (assigned,) = [each for each in measured.verdicts if each.what == "seconds until assigned"]
    assert assigned.passed == (measured.assigned_s < 20)
    assert [each["passed"] for each in million.written(measured)["verdicts"]] == [
        each.passed for each in measured.verdicts
    ]
    assert "bytes per project" in shown(million.show, measured)


async def test_the_api_is_measured_with_and_without_requests():
    words = ["--projects", "300", "--polls-per-s", "50", "--times", "2", "--seconds", "2", "--rounds", "1"]
    measured = await api.main(api.arguments_of([*words, "--requests-per-s", "20"]))

    assert measured.incidents == []
    assert [each.question for each in measured.answers] == list(api.questions(has_history=False))
    quiet, busy = measured.windows
    assert (quiet.requests, busy.requests, busy.refused) == (0, 40, 0)
    for each in measured.windows:
        assert each.polls >= 50
        assert each.late_ms["p50"] <= each.late_ms["p99"]
    assert measured.added_p99_ms == pytest.approx(busy.late_ms["p99"] - quiet.late_ms["p99"], abs=0.02)
    assert "added to p99" in shown(api.show, measured)


def test_what_the_server_did_before_the_load_is_no_cost_of_it():
    before = rig.Usage(1.0, {"postgresql": 15.2, "target": 0.5, "supervisor": 0.1}, {}, {}, {})
    after = rig.Usage(2.0, {"postgresql": 18.7, "target": 2.5, "supervisor": 0.3, "workers": 9.0}, {}, {}, {})

    assert million.cpu_spent(before, after) == {"postgresql": 3.5, "supervisor": 0.2, "workers": 9.0}


def test_engines_report_what_a_poll_costs():
    measured = engine.main(engine.arguments_of(["--seconds", "0.2", "--rounds", "1", "--in-flight", "8"]))

    assert [each.case for each in measured.cases] == list(engine.GOALS)
    for each in measured.cases:
        assert set(each.cpu_us_per_poll) == set(each.polls) == set(engine.ENGINES)
        assert all(cost > 0 for cost in each.cpu_us_per_poll.values())
        assert all(polls > 0 for polls in each.polls.values())
    text = shown(engine.show, measured)
    assert all(ratio in text for ratio in ("lean : bare", "aiohttp : lean", "client : lean"))
    assert "HTTPS, new" in text
    assert msgspec.json.decode(msgspec.json.encode(measured), type=engine.EngineFigures) == measured


@pytest.mark.parametrize("engine_name", ["lean", "aiohttp", "client"])
async def test_a_target_that_is_not_there_ends_the_measurement(engine_name):
    with socket.socket() as bound:  # and does not listen
        bound.bind(("127.0.0.1", 0))
        turn, words = engine.Turn(0.0), (bound.getsockname()[1], None, 4)
        if engine_name == "client":
            polling = engine.client_polled(turn, *words, kept=True)
        else:
            polling = engine.polled(turn, engine.make_prober(engine_name, None, kept=True), *words)
        with pytest.raises(rig.BenchError, match=r"a poll failed: .*[Cc]onnect"):
            await asyncio.wait_for(polling, DEADLINE_S)


def test_stages_report_what_each_costs():
    words = ["--polls-per-worker", "500", "--seconds", "1", "--rounds", "1", "--store-seconds", "2"]
    measured = stages.main(stages.arguments_of(words))

    assert list(measured.cpu_us_per_poll) == list(stages.STAGES)
    assert (measured.polls_per_worker, measured.batch_results) == (500, 20)
    assert measured.batch_bytes > 20 * 50
    differences = {"decide"}  # of two stages: it may be nothing on a busy machine
    assert all(cost > 0 for stage, cost in measured.cpu_us_per_poll.items() if stage not in differences)
    assert measured.total_us == pytest.approx(sum(measured.cpu_us_per_poll.values()), abs=0.1)
    text = shown(stages.show, measured)
    assert all(stage in text for stage in stages.STAGES)


async def test_the_cluster_and_a_bare_pipeline_save_everything():
    words = ["--projects", "60", "--workers", "2", "--seconds", "2", "--rounds", "1"]
    measured = await pipeline.main(pipeline.arguments_of(words))

    assert measured.holds
    assert measured.bare.saved == measured.bare.polls
    assert 2 * 60 <= measured.bare.polls <= 3 * 60
    assert all(cost > 0 for cost in measured.bare.cpu_us_per_poll.values())
    assert set(measured.bare.cpu_us_per_poll) <= set(measured.cluster_us_by_role)
    assert (len(measured.bare_us), len(measured.cluster_us)) == (1, 1)
    assert measured.bare_us[0] == pytest.approx(measured.bare.total_us, abs=0.1)
    assert f"costs {measured.ratio:.2f} times as much" in shown(pipeline.show, measured)


def test_figures_are_written_where_it_is_asked_for(tmp_path):
    path = tmp_path / "wal.json"
    chosen = wal.arguments_of(["--json", str(path)])
    measured = wal.WalFigures(170, [], {"cores": 2})
    write_figures(chosen.json, measured)
    assert msgspec.json.decode(path.read_bytes(), type=wal.WalFigures) == measured
    assert path.read_text().startswith('{\n  "')

    write_figures(wal.arguments_of([]).json, measured)
    assert list(tmp_path.iterdir()) == [path]


async def test_a_replay_reports_each_scenario():
    words = ["--rows", "20000", "--streams", "2", "--projects", "100"]
    found = await replay.main(replay.arguments_of(words))

    assert [each.scenario for each in found] == list(replay.SCENARIOS)
    assert all(each.rows == 20_000 and each.rows_per_s > 0 and each.writer_us_per_row > 0 for each in found)
    duplicates = {each.scenario: each.duplicates for each in found if each.duplicates}
    assert duplicates == {"late, 1 %": 200, "late, 50 %": 10_000}
    text = shown(replay.show, found)
    assert all(scenario in text for scenario in replay.SCENARIOS)


def test_the_wal_is_measured_with_each_policy(tmp_path):
    measured = wal.main(wal.arguments_of(["--results", "4000", "--directory", str(tmp_path)]))

    assert {(each.policy, each.batch_results) for each in measured.appends} == {
        (policy, results) for policy in wal.POLICIES for results in wal.BATCH_RESULTS
    }
    assert all(0 < each.results <= 4_000 and each.results_per_s > 0 for each in measured.appends)
    assert list(tmp_path.iterdir()) == [], "it cleans up after itself"
    assert "read back MB/s" in shown(wal.show, measured)
    assert msgspec.json.decode(msgspec.json.encode(measured), type=wal.WalFigures) == measured


async def test_a_cluster_that_does_not_start_is_reported_with_its_log():
    async with rig.rig(None) as ground:
        with pytest.raises(rig.BenchError, match="ended with 2"):
            async with ground.cluster("--workers", "0") as cluster:
                await cluster.wait(lambda now: False, "nothing", 60.0)


def shown(show, *arguments):
    text = io.StringIO()
    show(*arguments, Console(file=text, width=200))
    return text.getvalue()
