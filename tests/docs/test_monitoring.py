"""deploy/prometheus and deploy/grafana: what they ask for is there; each alert fires when it should and only then."""

import json
import re
import shutil
import subprocess

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.docs.documents import scraped
from tests.docs.repository_facts import ROOT, read
from tests.docs.test_files import anchors

RULES_FILE = ROOT / "deploy" / "prometheus" / "ringpoll.rules.yml"
SCRAPE_FILE = ROOT / "deploy" / "prometheus" / "prometheus.yml"
DASHBOARD = json.loads(read("deploy/grafana/ringpoll.json"))
RULES = yaml.safe_load(RULES_FILE.read_text())
ALERTS = {rule["alert"]: rule for group in RULES["groups"] for rule in group["rules"]}
RUNBOOK = read("deploy/RUNBOOK.md")
METRIC = re.compile(r"\bringpoll_[a-z0-9_]+")

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="needs promtool (part of Prometheus); rules and metrics are not checked by it",
)


def promtool(*arguments):
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def sample_names():
    return {each.name for family in text_string_to_metric_families(scraped()) for each in family.samples}


# ---- the dashboard ------------------------------------------------------------------------------------------------


def panels():
    for panel in DASHBOARD["panels"]:
        yield panel
        yield from panel.get("panels", [])


def queries():
    """(title, expression) of each."""
    for panel in panels():
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for annotation in DASHBOARD["annotations"]["list"]:
        if "expr" in annotation:
            yield annotation["name"], annotation["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["definition"]


def test_each_metric_of_the_dashboard_exists():
    there = sample_names()
    asked = {(title, name) for title, expr in queries() for name in METRIC.findall(expr)}
    assert len({name for _, name in asked}) > 45
    assert sorted(each for each in asked if each[1] not in there) == []


def test_the_dashboard_has_its_rows_and_a_data_source_to_choose():
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    expected = ["Overview", "Workers", "Lateness", "Delivery", "Database", "HTTP API", "Capacity", "Single projects"]
    assert [title for title, start in zip(rows, expected, strict=True) if not title.startswith(start)] == []
    assert DASHBOARD["templating"]["list"][0]["type"] == "datasource"
    for panel in panels():
        if panel["type"] != "row":
            sources = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
            assert all(source == {"type": "prometheus", "uid": "${datasource}"} for source in sources), panel["title"]
            assert all('job=~"$job",instance=~"$instance"' in target["expr"] for target in panel["targets"])


def test_panels_have_ids_of_their_own_and_do_not_overlap():
    ids = [panel["id"] for panel in panels()]
    assert len(ids) == len(set(ids))
    taken = set()
    for panel in panels():
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


@needs_promtool
def test_the_queries_of_the_dashboard_are_promql(tmp_path):
    rules = []
    for title, expr in queries():
        if not expr.startswith("label_values("):
            for name, value in (("$__rate_interval", "1m"), ("$__range", "1h"), ("$job", "a"), ("$instance", "b")):
                expr = expr.replace(name, value)  # noqa: PLW2901
            rules.append({"record": f"query_{len(rules)}", "expr": expr, "labels": {"title": title}})
    path = tmp_path / "queries.json"  # JSON is YAML
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", str(path))


# ---- scraping -----------------------------------------------------------------------------------------------------


@needs_promtool
@pytest.mark.parametrize("secured", [False, True])
def test_promtool_accepts_the_scrape_configuration(tmp_path, secured):
    text = SCRAPE_FILE.read_text()
    if secured:  # what stands there as a comment, taken in
        text = re.sub(
            r"^(    )# (?=authorization:|  type:|  credentials_file:|scheme:)", r"\1", text, flags=re.MULTILINE
        )
        token = tmp_path / "token"
        token.write_text("secret")
        text = text.replace("/etc/prometheus/ringpoll.token", str(token))
        (job,) = yaml.safe_load(text)["scrape_configs"]
        assert (job["authorization"]["credentials_file"], job["scheme"]) == (str(token), "https")
    shutil.copy(RULES_FILE, tmp_path)
    (tmp_path / "prometheus.yml").write_text(text)
    promtool("check", "config", str(tmp_path / "prometheus.yml"))


# ---- alerts -------------------------------------------------------------------------------------------------------


@needs_promtool
def test_promtool_accepts_the_rules():
    promtool("check", "rules", str(RULES_FILE))


def test_each_metric_of_the_rules_exists():
    there = sample_names()
    asked = {(name, metric) for name, rule in ALERTS.items() for metric in METRIC.findall(rule["expr"])}
    assert sorted(each for each in asked if each[1] not in there) == []


@pytest.mark.parametrize("name", ALERTS)
def test_each_alert_says_what_it_is_and_leads_to_its_entry_in_the_runbook(name):
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["description"]
    file, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert (file, anchor) == ("deploy/RUNBOOK.md", name.lower())
    assert anchor in anchors(RUNBOOK)
    entry = RUNBOOK.partition(f"\n### {name}\n")[2].partition("\n#")[0]
    assert len(entry.split()) >= 12


def test_the_runbook_has_no_alert_that_is_gone():
    section = RUNBOOK.partition("\n## Alerts\n")[2].partition("\n## ")[0]
    assert re.findall(r"^### (.+)$", section, re.MULTILINE) == list(ALERTS)


ONE = '{job="ringpoll", instance="a:1"}'
OF_WORKER = '{job="ringpoll", instance="a:1", worker="worker-1"}'


def labelled(**labels):
    both = {"job": "ringpoll", "instance": "a:1"} | labels
    return "{" + ", ".join(f'{name}="{value}"' for name, value in both.items()) + "}"


def gauge(name, value, /, **labels):
    return {f"{name}{labelled(**labels)}": f"{value}x100"}


def counter(name, per_minute, /, **labels):
    return {f"{name}{labelled(**labels)}": f"0+{per_minute}x100"}


def histogram(name, bound_s, /, **labels):
    """60 samples a minute, all of them between a quarter of the bound and the bound."""
    below = counter(f"{name}_bucket", 0, le=str(bound_s / 4), **labels)
    return (
        below
        | counter(f"{name}_bucket", 60, le=str(bound_s), **labels)
        | counter(f"{name}_bucket", 60, le="+Inf", **labels)
    )


NOW_S = 5_400  # when the rules are evaluated; series begin at 0

# alert: series that fire it, labels it then has beside job, instance and its severity; series that do not.
CASES = {
    "RingpollScrapeMissing": (gauge("up", 0), {}, gauge("up", 1)),
    "RingpollNotReady": (gauge("ringpoll_ready", 0), {}, gauge("ringpoll_ready", 1)),
    "RingpollDatabaseDown": (gauge("ringpoll_database_up", 0), {}, gauge("ringpoll_database_up", 1)),
    "RingpollInvalidProjects": (
        gauge("ringpoll_invalid_projects", 3),
        {},
        gauge("ringpoll_invalid_projects", 0),
    ),
    "RingpollCoordinatorLoopLag": (
        histogram("ringpoll_coordinator_timer_delay_seconds", 2.0),
        {},
        histogram("ringpoll_coordinator_timer_delay_seconds", 0.02),
    ),
    "RingpollWorkerMissing": (
        gauge("ringpoll_workers_wanted", 4) | gauge("ringpoll_workers", 3, state="running"),
        {},
        gauge("ringpoll_workers_wanted", 4) | gauge("ringpoll_workers", 4, state="running"),
    ),
    "RingpollWorkerFlapping": (
        {f"ringpoll_worker_polls_total{OF_WORKER}": "100 200 1 " * 40},
        {"worker": "worker-1"},
        {f"ringpoll_worker_polls_total{OF_WORKER}": "0+60x50 0+60x50"},  # restarted once
    ),
    "RingpollPollsLate": (
        histogram("ringpoll_poll_lateness_seconds", 5.0),
        {},
        histogram("ringpoll_poll_lateness_seconds", 0.5),
    ),
    "RingpollTicksMissed": (
        counter("ringpoll_missed_ticks_total", 6, reason="overload"),
        {"reason": "overload"},
        counter("ringpoll_missed_ticks_total", 0, reason="overload")
        | counter("ringpoll_missed_ticks_total", 6, reason="paused")
        | counter("ringpoll_missed_ticks_total", 6, reason="down"),
    ),
    "RingpollHealthCritical": (
        gauge("ringpoll_health", 1, state="critical"),
        {"state": "critical"},
        gauge("ringpoll_health", 0, state="critical") | gauge("ringpoll_health", 1, state="warning"),
    ),
    "RingpollOwnFaults": (
        counter("ringpoll_local_causes_total", 6, cause="descriptors"),
        {"cause": "descriptors"},
        counter("ringpoll_local_causes_total", 0, cause="descriptors"),
    ),
    "RingpollWorkerLoopLag": (
        histogram("ringpoll_worker_timer_delay_seconds", 0.5, worker="worker-1"),
        {"worker": "worker-1"},
        histogram("ringpoll_worker_timer_delay_seconds", 0.01, worker="worker-1"),
    ),
    "RingpollWalBlocked": (
        gauge("ringpoll_worker_wal_state", 1, worker="worker-1", state="full"),
        {"worker": "worker-1", "state": "full"},
        gauge("ringpoll_worker_wal_state", 1, worker="worker-1", state="ok")
        | gauge("ringpoll_worker_wal_state", 0, worker="worker-1", state="full"),
    ),
    "RingpollWalNearLimit": (
        gauge("ringpoll_worker_wal_bytes", 800, worker="worker-1") | gauge("ringpoll_wal_limit_bytes", 1000),
        {"worker": "worker-1"},
        gauge("ringpoll_worker_wal_bytes", 100, worker="worker-1") | gauge("ringpoll_wal_limit_bytes", 1000),
    ),
    "RingpollResultsGivenUp": (
        counter("ringpoll_worker_wal_dropped_results_total", 5, worker="worker-1"),
        {"worker": "worker-1"},
        gauge("ringpoll_worker_wal_dropped_results_total", 5, worker="worker-1"),
    ),
    "RingpollWalDamaged": (
        counter("ringpoll_worker_wal_sync_failures_total", 5, worker="worker-1"),
        {"worker": "worker-1"},
        gauge("ringpoll_worker_wal_sync_failures_total", 5, worker="worker-1")
        | gauge("ringpoll_worker_wal_damaged_total", 1, worker="worker-1"),
    ),
    "RingpollWriterLag": (gauge("ringpoll_writer_lag_seconds", 30), {}, gauge("ringpoll_writer_lag_seconds", 2)),
    "RingpollWriterAway": (
        gauge("ringpoll_writer_state", 0, state="running") | gauge("ringpoll_writer_state", 1, state="restarting"),
        {"state": "running"},
        gauge("ringpoll_writer_state", 1, state="running") | gauge("ringpoll_writer_state", 0, state="restarting"),
    ),
    "RingpollResultsBehind": (
        gauge("ringpoll_accounted_to_timestamp_seconds", 60),
        {},
        {f"ringpoll_accounted_to_timestamp_seconds{ONE}": "0+60x100"},
    ),
    "RingpollRollupsBehind": (
        gauge("ringpoll_rollup_lag_seconds", 3_600),
        {},
        gauge("ringpoll_rollup_lag_seconds", 120),
    ),
    "RingpollRejects": (
        counter("ringpoll_writer_rejects_total", 1),
        {},
        gauge("ringpoll_writer_rejects_total", 7),
    ),
    "RingpollHttpErrors": (
        counter("ringpoll_http_requests_total", 6, route="/api/v1/projects", status="5xx")
        | counter("ringpoll_http_requests_total", 60, route="/api/v1/projects", status="2xx"),
        {},
        counter("ringpoll_http_requests_total", 60, route="/readyz", status="5xx")
        | counter("ringpoll_http_requests_total", 1, route="/api/v1/projects", status="5xx")
        | counter("ringpoll_http_requests_total", 60, route="/api/v1/projects", status="2xx"),
    ),
    "RingpollCertificateExpires": (
        gauge("ringpoll_project_certificate_expiry_timestamp_seconds", NOW_S + 13 * 86_400, project="7", name="shop"),
        {"project": "7", "name": "shop"},
        gauge("ringpoll_project_certificate_expiry_timestamp_seconds", NOW_S + 15 * 86_400, project="7", name="shop"),
    ),
    "RingpollProjectMetricsStale": (
        gauge("ringpoll_project_metrics_age_seconds", 600),
        {},
        gauge("ringpoll_project_metrics_age_seconds", 20),
    ),
}


def unit_tests():
    """For each alert: it fires; it does not; and where it waits, it does not fire before its time."""
    for name, (firing, labels, quiet) in CASES.items():
        rule = ALERTS[name]
        full = {"job": "ringpoll", "instance": "a:1", **labels, **rule["labels"]}
        yield name, firing, f"{NOW_S}s", [{"exp_labels": full}]
        yield name, quiet, f"{NOW_S}s", []
        if "for" in rule:
            yield name, firing, "0s", []
    yield (
        "RingpollScrapeMissing",
        gauge("up", 1, job="another"),
        "10m",
        [{"exp_labels": {"job": "ringpoll", "severity": "page"}}],
    )


@needs_promtool
def test_each_alert_fires_when_it_should_and_only_then(tmp_path):
    bare = json.loads(json.dumps(RULES))
    for group in bare["groups"]:
        for rule in group["rules"]:
            del rule["annotations"]  # their texts are no part of these tests, but promtool compares them
    (tmp_path / "rules.json").write_text(json.dumps(bare))
    tests = [
        {
            "name": f"{name} at {at}: {'fires' if expected else 'does not fire'}",
            "interval": "1m",
            "input_series": [{"series": series, "values": values} for series, values in given.items()],
            "alert_rule_test": [{"eval_time": at, "alertname": name, "exp_alerts": expected}],
        }
        for name, given, at, expected in unit_tests()
    ]
    path = tmp_path / "tests.json"
    path.write_text(json.dumps({"rule_files": ["rules.json"], "evaluation_interval": "1m", "tests": tests}))
    promtool("test", "rules", str(path))


def test_each_alert_has_a_case():
    assert list(CASES) == list(ALERTS)
