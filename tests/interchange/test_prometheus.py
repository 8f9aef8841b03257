"""Prometheus and blackbox_exporter: configurations in their real layout, with what is odd in such files."""

import json

import pytest

from cluster.errors import InvalidInputError
from cluster.interchange.blackbox import read_blackbox
from cluster.interchange.prometheus import read_prometheus
from tests.interchange.accounting import accounted, approximated, fields_said, lost, valid

CONFIG = """\
global:
  scrape_interval: 15s
  evaluation_interval: 15s
  external_labels: {monitor: "a"}
rule_files: [alerts.yml]
alerting: {alertmanagers: [{static_configs: [{targets: ["am:9093"]}]}]}
x-relabel: &relabel
  - source_labels: [__address__]
    target_label: __param_target
  - source_labels: [__param_target]
    target_label: instance
  - target_label: __address__
    replacement: blackbox-exporter:9115
scrape_configs:
  - job_name: prometheus
    static_configs: [{targets: ["localhost:9090"]}]
  - job_name: 'web'
    metrics_path: /probe
    scrape_interval: 1m30s
    scrape_timeout: 8s
    params: {module: [http_ok]}
    static_configs:
      - targets:
        - https://a.example/health?x=1   # with TLS
        - b.example:8080
        labels: {env: prod, team: "ünï"}
      - targets: [https://c.example/]
        labels: {name: named, __param_module: http_post}
      - targets: []
    relabel_configs: *relabel
    basic_auth: {username: u, password: p}
  - job_name: prefixed
    metrics_path: /probe
    relabel_configs:
      - {source_labels: [__address__], regex: "(.*)", target_label: __param_target, replacement: "https://${1}/up"}
      - {source_labels: [__param_target], target_label: shown}
      - {target_label: __address__, replacement: "127.0.0.1:9115"}
    static_configs: [{targets: [d.example]}]
  - job_name: tcp
    metrics_path: /probe
    params: {module: [tcp_connect]}
    static_configs: [{targets: ["e.example:22"]}]
    relabel_configs: *relabel
  - job_name: odd
    params: {module: [http_ok]}
    relabel_configs:
      - {source_labels: [__address__], regex: "(.*)/(.*)", target_label: __param_target, replacement: "$1"}
    static_configs: [{targets: [f.example/x]}]
  - job_name: discovered
    params: {module: [http_ok]}
    file_sd_configs: [{files: ["targets/*.json"]}]
    relabel_configs: *relabel
  - job_name: fixed
    metrics_path: /probe
    params: {module: [http_ok], target: ["https://g.example/"], debug: ["true"]}
    static_configs: [{targets: ["blackbox:9115"]}]
"""
BLACKBOX = """\
modules:
  http_ok:
    prober: http
    timeout: 5s
    http:
      valid_http_versions: ["HTTP/1.1", "HTTP/2.0"]
      valid_status_codes: []
      fail_if_not_ssl: true
      fail_if_body_matches_regexp: ["Could not"]
      fail_if_body_not_matches_regexp: ["ok", "v[0-9]+\\\\.x"]
      fail_if_header_not_matches:
        - {header: Content-Type, regexp: "text/.*"}
        - {header: X-May, regexp: a, allow_missing: true}
      preferred_ip_protocol: ip4
      tls_config: {insecure_skip_verify: false, ca_file: /certs/ca.crt, min_version: TLS12}
      body_size_limit: 1MB
      made_up: 1
  http_post:
    prober: http
    http:
      method: POST
      headers: {Content-Type: application/json, X-A: "${x}"}
      body: '{}'
      valid_status_codes: [200, 201, 204]
      follow_redirects: false
      basic_auth: {username: me, password_file: /etc/secrets/pw}
      preferred_ip_protocol: ip6
      ip_protocol_fallback: false
      proxy_url: "http://proxy.example:3128"
  http_token: {prober: http, http: {authorization: {credentials: abc}, tls_config: {server_name: x.example}}}
  tcp_connect: {prober: tcp, timeout: 5s, tcp: {tls: true}}
  icmp: {prober: icmp}
"""


@pytest.fixture(scope="module")
def found():
    imported = read_prometheus(CONFIG, "prometheus.yml", read_blackbox(BLACKBOX, "blackbox.yml"))
    return {each.label: each for each in accounted(imported)}


def test_a_target_becomes_a_project(found):
    candidate = found["web/https://a.example/health?x=1"]
    fields = valid(candidate)
    assert candidate.where == "line 23 targets[0]"
    assert (fields.url, fields.name) == ("https://a.example/health?x=1", "web/https://a.example/health?x=1")
    assert (fields.interval, fields.unit, fields.timeout_ms, fields.expected_status) == (90, "seconds", 5_000, "2xx")
    assert (fields.ca_file, fields.body_limit_bytes, fields.ip_version) == ("/certs/ca.crt", 1 << 20, None)
    assert fields.assertions == [
        {"type": "body_matches", "pattern": "(?s)ok"},
        {"type": "body_matches", "pattern": "(?s)v[0-9]+\\.x"},
        {"type": "header", "name": "content-type", "op": "matches", "value": "text/.*"},
    ]
    assert set(lost(candidate)) == {
        "labels.env", "labels.team", "module.http.valid_http_versions", "module.http.fail_if_body_matches_regexp",
        "module.http.fail_if_header_not_matches[1]", "module.http.tls_config.min_version", "module.http.made_up",
        "basic_auth",
    }  # fmt: skip
    assert set(approximated(candidate)) == {
        "module.http.fail_if_not_ssl", "module.http.preferred_ip_protocol", "module.http.tls_config.ca_file",
    }  # fmt: skip


def test_other_targets(found):
    plain = found["web/b.example:8080"]
    assert valid(plain).url == "http://b.example:8080"
    assert "https:// target" in lost(plain)["module.http.fail_if_not_ssl"]
    posted = valid(found["named"])
    assert (posted.method, posted.body, posted.basic_auth) == ("POST", "{}", "me:${file:pw}")
    assert posted.headers == {"Content-Type": "application/json", "X-A": "$${x}"}
    assert (posted.expected_status, posted.follow_redirects, posted.ip_version) == ("200-201,204", False, 6)
    assert (posted.proxy, posted.timeout_ms) == ("http://proxy.example:3128", 7_500)
    prefixed = found["fixed/https://g.example/"]
    assert valid(prefixed).interval == 15
    assert "params.debug" in lost(prefixed)


@pytest.mark.parametrize(
    ("label", "why"),
    [
        ("prometheus/localhost:9090", "scrapes metrics"), ("tcp/e.example:22", "probes by tcp"),
        ("odd/f.example/x", "can't be told"), ("discovered", "file_sd_configs: import the files"),
        ("web", "has no targets"), ("prefixed/d.example", "no module 'http_2xx'"),
    ],
)  # fmt: skip
def test_what_can_not_be_polled_is_skipped(found, label, why):
    assert why in found[label].skipped


def test_without_blackbox_a_name_has_to_say_what_is_meant():
    found = {each.label: each for each in accounted(read_prometheus(CONFIG, "prometheus.yml"))}
    assert valid(found["prefixed/d.example"]).url == "https://d.example/up"
    assert "taken as GET with 2xx" in approximated(found["prefixed/d.example"])["params.module"]
    assert lost(found["prefixed/d.example"]) == {"relabel_configs[1]": "ringpoll has no labels of projects"}
    assert "--blackbox" in found["tcp/e.example:22"].skipped


def test_each_target_and_each_field_of_its_job_is_accounted_for(found):
    document = {"web": ["job_name", "metrics_path", "scrape_interval", "scrape_timeout", "params", "static_configs"]}
    said = fields_said(found["web/https://a.example/health?x=1"])
    missing = {*document["web"], "relabel_configs", "basic_auth", "labels", "labels.env", "targets"} - set(said)
    assert not missing
    assert {f"module.{field}" for field in ("prober", "timeout", "http", "http.valid_status_codes")} <= set(said)
    assert len(found) == 10
    notes = {note.field for note in read_prometheus(CONFIG, "x").notes}
    assert notes == {"rule_files", "alerting", "x-relabel", "global.evaluation_interval", "global.external_labels"}


@pytest.mark.parametrize("dump", [json.dumps, lambda groups: f"# as YAML\n- {json.dumps(groups[0])}\n- {groups[1]}\n"])
def test_files_of_targets(dump):
    groups = [
        {"targets": ["https://a.example/", "b.example"], "labels": {"job": "web", "env": "x"}},
        {"targets": ["https://c.example/"], "labels": {"name": "c"}},
    ]
    first, second, third = accounted(read_prometheus(dump(groups), "targets"))
    assert [each.label for each in (first, second, third)] == ["web/https://a.example/", "web/b.example", "c"]
    assert valid(second).url == "http://b.example"
    assert lost(first) == {"labels.env": "ringpoll has no labels of projects"}
    assert "targets" in approximated(first)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("just text", "must hold scrape_configs"),
        ("scrape_configs: 5\n", "scrape_configs a list"),
        ("global: []\nscrape_configs: 5\n", "must be a map"),
    ],
)
def test_what_is_no_configuration(text, error):
    with pytest.raises(InvalidInputError, match=error):
        read_prometheus(text, "x")


@pytest.mark.parametrize(
    "job",
    [
        "5", "{job_name: a, params: 5}", "{job_name: a, params: {module: x}}", "{job_name: a, static_configs: 5}",
        "{job_name: a, scrape_interval: often}", "{job_name: a, relabel_configs: [5]}",
        "{job_name: a, relabel_configs: [{target_label: [x]}]}", "{job_name: a, static_configs: [5]}",
        "{job_name: a, static_configs: [{targets: x}]}", "{job_name: a, static_configs: [{targets: [[x]]}]}",
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_job(job):
    (found,) = accounted(read_prometheus(f"scrape_configs:\n- {job}\n", "x"))
    assert found.wrong


@pytest.mark.parametrize(
    ("module", "error"),
    [
        ("5", "must be a map"),
        ("{prober: http, timeout: x}", "must be a duration"),
        ("{prober: http, http: {valid_status_codes: [ok]}}", "'ok' is no status"),
        ("{prober: http, http: {valid_status_codes: 200}}", "must be a list"),
        ("{prober: http, http: {headers: [a]}}", "must be a map"),
        ("{prober: http, http: {headers: {a: [b]}}}", "must be text"),
        ("{prober: http, http: {body_size_limit: much}}", "must be a size"),
        ("{prober: http, http: {follow_redirects: maybe}}", "must be true or false"),
    ],
)
def test_what_is_wrong_in_a_module(module, error):
    with pytest.raises(InvalidInputError, match=error):
        read_blackbox(f"modules:\n  m: {module}\n", "blackbox.yml")
    with pytest.raises(InvalidInputError, match="no map of modules"):
        read_blackbox("a: 1\n", "blackbox.yml")


def test_import_is_found_out_by_its_content_and_again_changes_nothing(table, tmp_path):
    file, modules = tmp_path / "prometheus.yml", tmp_path / "blackbox.yml"
    file.write_text(CONFIG)
    modules.write_text(BLACKBOX)
    arguments = ("projects", "import", file, "--blackbox", modules)
    ran = table(*arguments, "--dry-run")
    assert ran.out.splitlines()[-1] == "would add 4, update 0, skipped 6"
    assert table(*arguments).out == "added 4, updated 0, skipped 6\n"
    assert table(*arguments).out == "added 0, updated 0, unchanged 4, skipped 6\n"
    assert "give it with --blackbox" in table("projects", "import", modules).error
    other = tmp_path / "a.csv"
    other.write_text("url\nhttp://a/\n")
    assert "--blackbox: goes with targets of Prometheus" in table("projects", "import", other, *arguments[3:]).error


def test_what_a_file_of_targets_can_hold_comes_back(table, tmp_path):
    table.sql(
        "INSERT INTO projects (name, url, expected_status, timeout_ms, interval, unit, retries, enabled) VALUES "
        "('a/b', 'https://a.example/', '2xx', 9500, 1, 'minutes', 0, true), "
        "('c', 'http://c.example/', '200', 9500, 1, 'minutes', 2, true), "
        "('d', 'http://d/', '200', 1, 1, 'hours', 0, false)"
    )
    file = tmp_path / "targets.json"
    ran = table("projects", "export", file, "--format", "prometheus")
    assert "project 3: is not enabled" in ran.err
    assert "project 2: retries: " in ran.err
    assert ran.err.splitlines()[-1] == "exported 2 projects"
    ran = table("projects", "import", file)
    assert ran.out == "added 0, updated 1, unchanged 1\n"


def test_ten_thousand_targets(table, tmp_path):
    file = tmp_path / "targets.json"
    file.write_text(json.dumps([{"targets": [f"https://h{at}.example/" for at in range(10_000)], "labels": {}}]))
    assert table("projects", "import", file).out == "added 10000, updated 0\n"
