"""Gatus: a configuration in its real layout, with what is odd in such files."""

import pytest

from cluster.assertions import validate_assertions
from cluster.errors import InvalidInputError
from cluster.interchange.gatus import LISTS, read_gatus, write_gatus
from cluster.interchange.gatus_conditions import glob_pattern, read_condition
from cluster.interchange.go_durations import duration_ms, written_ms
from cluster.interchange.status_sets import FINAL_STATUSES, statuses_of, written_set
from cluster.interchange.yaml_text import read_yaml
from tests.interchange.accounting import accounted, approximated, fields_said, lost, notes_of, unaccounted, valid

CONFIG = """\
# the whole of a status page
metrics: true
storage:
  type: postgres
  path: "postgres://gatus:${DB_PASSWORD}@db/gatus?sslmode=disable"
alerting:
  slack:
    webhook-url: "$SLACK_URL"
    default-alert:
      description: "health check failed"
      send-on-resolved: true
      failure-threshold: 5
      success-threshold: 4
  pagerduty: {integration-key: "k"}
ui: {title: Überblick ☃}
maintenance: null
x-defaults: &defaults
  group: core
  interval: 1m30s
  client: &client
    timeout: 5s
    insecure: true
  alerts:
    - type: slack
endpoints:
  - name: front-end
    <<: *defaults
    url: "https://twin.example/health?a=$$1"
    conditions:
      - "[STATUS] == 200"
      - "[BODY].status == UP"
      - "[RESPONSE_TIME] < 150"
  - name: back-end
    group: core
    url: https://api.example/graphql
    method: POST
    graphql: true
    body: '{ users { id, "n" } } [ENDPOINT_GROUP]/[ENDPOINT_NAME]'
    headers:
      Authorization: "Bearer ${API_TOKEN}"
      X-Price: "5$$ $${kept}"
      X-Number: 17
    client:
      <<: *client
      ignore-redirect: true
      proxy-url: http://proxy.example:3128
      dns-resolver: "tcp://8.8.8.8:53"
      oauth2: {token-url: https://t/, client-id: a, client-secret: b, scopes: [c]}
      tls: {certificate-file: /etc/me.crt, private-key-file: /etc/me.key, renegotiation: never}
    extra-labels: {team: a}
    ui: {hide-url: true}
    enabled: "no"
    alerts:
      - type: pagerduty
        failure-threshold: "2"
        success-threshold: 1
        description: "it's down"
        send-on-resolved: true
        provider-override: {to: x}
      - {type: slack, failure-threshold: 3, enabled: true, minimum-reminder-interval: 4h}
      - {type: discord, enabled: false, failure-threshold: 1}
    conditions:
      - "[STATUS] == any(200, 429)"
      - "[STATUS] < 400"
      - "[BODY] == pat(*ok*)"
      - "len([BODY].users) >= 2"
      - "has([BODY].errors) == false"
      - "[CERTIFICATE_EXPIRATION] > 50h"
      - "[BODY] != broken"
      - "[IP] == 127.0.0.1"
      - "[CONNECTED] == true"
  - {name: ping, url: "icmp://example.org", conditions: ["[CONNECTED] == true"]}
  - {name: tcp, url: "tcp://127.0.0.1:6379", conditions: ["[CONNECTED] == true"]}
  - name: dns
    url: "8.8.8.8"
    dns: {query-name: "example.com", query-type: A}
    conditions: ["[BODY] == 93.184.215.14", "[DNS_RCODE] == NOERROR"]
  - {name: ssh, url: "ssh://host:22", ssh: {username: u, password: p}, conditions: ["[CONNECTED] == true"]}
  - {name: mail, url: "starttls://smtp.example:587", conditions: ["[CONNECTED] == true"]}
  - {name: socket, url: "wss://echo.example/", body: x, conditions: ["[CONNECTED] == true"]}
  - {name: from env, url: "https://${DOMAIN}/", conditions: ["[STATUS] == 200"]}
  - {name: down, url: "https://a.example/", conditions: ["[CONNECTED] == false"]}
  - {name: newer, url: "https://a.example/", conditions: ["[STATUS] == 200"], made-up: 1, store: {a: "[BODY].id"}}
external-endpoints:
  - {name: backup, group: cron, token: "t", heartbeat: {interval: 30m}}
suites:
  - name: checkout
    interval: 10m
    endpoints:
      - {name: add, url: https://s.example/, conditions: ["[STATUS] == 200"], store: {id: "[BODY].id"}}
"""


@pytest.fixture(scope="module")
def candidates():
    return {each.label: each for each in accounted(read_gatus([("config.yaml", CONFIG)]))}


def test_an_endpoint_becomes_a_project(candidates):
    fields = valid(candidates["core/front-end"])
    assert candidates["core/front-end"].where == "line 26"
    assert (fields.name, fields.url) == ("core/front-end", "https://twin.example/health?a=$1")
    assert (fields.interval, fields.unit, fields.timeout_ms, fields.verify_tls) == (90, "seconds", 5_000, False)
    assert (fields.down_after, fields.up_after, fields.enabled, fields.expected_status) == (5, 4, True, "200")
    assert fields.assertions == [
        {"type": "json_path", "path": "$.status", "op": "==", "value": "UP"},
        {"type": "response_time_below", "ms": 150},
    ]


def test_what_is_odd_in_an_endpoint_is_kept_or_said(candidates):
    found = candidates["core/back-end"]
    fields = valid(found)
    assert fields.headers == {
        "Authorization": "Bearer ${API_TOKEN}", "X-Price": "5$ $${kept}", "X-Number": "17",
        "Content-Type": "application/json",
    }  # fmt: skip
    assert fields.body == '{"query":"{ users { id, \\"n\\" } } core/back-end"}'
    assert (fields.method, fields.enabled, fields.follow_redirects, fields.verify_tls) == ("POST", False, False, False)
    assert (fields.proxy, fields.client_cert_file, fields.client_key_file) == (
        "http://proxy.example:3128", "/etc/me.crt", "/etc/me.key",
    )  # fmt: skip
    assert fields.expected_status == "200"
    assert (fields.down_after, fields.up_after) == (2, 1)
    assert [each["type"] for each in fields.assertions] == [
        "body_contains", "json_path", "json_path", "certificate_days",
    ]  # fmt: skip
    assert set(lost(found)) == {
        "client.dns-resolver", "client.oauth2", "client.tls.renegotiation", "extra-labels", "ui",
        "alerts[0].description", "alerts[0].send-on-resolved", "alerts[0].provider-override",
        "alerts[1].minimum-reminder-interval", "conditions[6]", "conditions[7]",
    }  # fmt: skip
    assert set(approximated(found)) == {
        "headers", "client.tls.certificate-file", "client.tls.private-key-file", "alerts",
        "conditions[3]", "conditions[5]",
    }  # fmt: skip
    assert "RINGPOLL_SECRET_API_TOKEN" in approximated(found)["headers"]
    assert "rounded up to 3 whole days" in approximated(found)["conditions[5]"]


@pytest.mark.parametrize(
    ("label", "why"),
    [
        ("ping", "'icmp'"), ("tcp", "'tcp'"), ("dns", "DNS or SSH"), ("ssh", "DNS or SSH"), ("mail", "'starttls'"),
        ("socket", "'wss'"), ("from env", "url holds ${DOMAIN}"), ("down", "can't be reached"),
        ("cron/backup", "external endpoint"), ("checkout", "a suite of 1 endpoints"),
    ],
)  # fmt: skip
def test_what_can_not_be_polled_is_skipped_with_the_reason(candidates, label, why):
    assert why in candidates[label].skipped


def test_each_entry_and_each_field_is_accounted_for(candidates):
    document = read_yaml(CONFIG, "x", texts=True)
    entries = [entry for key in LISTS for entry in document[key]]
    assert len(candidates) == len(entries)
    for entry, candidate in zip(entries, candidates.values(), strict=True):
        nested = ("client", "alerts", "conditions")
        assert unaccounted(entry, candidate, nested=nested) == []
        if candidate.project is not None and "tls" in entry.get("client", {}):
            said = fields_said(candidate)
            assert {f"client.tls.{name}" for name in entry["client"]["tls"]} <= set(said)
    said = {note.field for note in read_gatus([("config.yaml", CONFIG)]).notes}
    assert said == {key for key, value in document.items() if value is not None} - set(LISTS)
    assert lost(candidates["newer"]) == {
        "made-up": "not a field that this import knows", "store": "ringpoll has no chain of requests",
    }  # fmt: skip


def test_a_directory_is_read_as_one_configuration(table, tmp_path):
    (tmp_path / "conf" / "sub").mkdir(parents=True)
    (tmp_path / "conf/b.yaml").write_text("endpoints:\n- {name: b, url: http://b/, conditions: ['[STATUS] == 200']}\n")
    (tmp_path / "conf/sub/a.yml").write_text(
        "endpoints:\n- {name: a, url: http://a/, conditions: ['[STATUS] == 204'], alerts: [{type: slack}]}\n"
    )
    (tmp_path / "conf/z.yaml").write_text("alerting: {slack: {default-alert: {failure-threshold: 7}}}\n")
    (tmp_path / "conf/notes.txt").write_text("no part of it")
    ran = table("projects", "import", tmp_path / "conf", "--dry-run")
    assert ran.out.splitlines()[1] == "b.yaml line 2: b: would add"
    ran = table("projects", "import", tmp_path / "conf")
    assert ran.out == "added 2, updated 0\n"
    assert "z.yaml alerting: not mapped" in ran.err
    assert [(row["name"], row["down_after"]) for row in table.rows()] == [("b", 1), ("a", 7)]
    assert table("projects", "import", tmp_path / "conf", "--format", "csv").status == 2


def test_import_is_told_line_by_line_and_again_changes_nothing(table, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_bytes(b"\xef\xbb\xbf" + CONFIG.replace("\n", "\r\n").encode())
    ran = table("projects", "import", file, "--dry-run")
    lines = ran.out.splitlines()
    assert "line 26: core/front-end: would add" in lines
    assert lines[-1] == "would add 3, update 0, skipped 10"
    assert any(line.endswith("ping: skipped: ringpoll polls http and https, not 'icmp'") for line in lines)
    assert "    not mapped: conditions[6]: [BODY] != broken: there is no assertion of what a body must not be" in lines
    assert table.rows() == []
    ran = table("projects", "import", file)
    assert ran.out == "added 3, updated 0, skipped 10\n"
    assert "from env: skipped" in ran.err
    assert "core/back-end: not mapped: conditions[]: [BODY] != broken" in ran.err
    assert table("projects", "import", file).out == "added 0, updated 0, unchanged 3, skipped 10\n"


def test_a_wrong_endpoint_refuses_all_unless_it_is_left_out(table, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(
        "endpoints:\n"
        "- {name: a, url: http://a/, conditions: ['[STATUS] == 200']}\n"
        "- {name: b, url: http://b/, conditions: ['[STATUS] is 200']}\n"
        "- {name: c, url: http://c/, interval: often, conditions: []}\n"
        "- {name: d, url: 'http://d d/', conditions: ['[STATUS] == 200']}\n"
        "- {name: e, url: 'http://e/', conditions: ['[STATUS] == 200', '[STATUS] == 201']}\n"
        "- {name: a, url: http://a/2, conditions: ['[STATUS] == 200']}\n"
        "- text\n"
    )
    ran = table("projects", "import", file)
    assert ran.status == 2
    assert [line.partition(":")[0] for line in ran.err.splitlines()] == [
        "line 3", "line 4", "line 5", "line 6", "line 7", "endpoints[6]", "Error",
    ]  # fmt: skip
    assert "line 4: c: interval: must be a duration such as 30s or 1m30s, not 'often'" in ran.err
    assert table.rows() == []
    assert table("projects", "import", file, "--skip-invalid").out == "added 1, updated 0, wrong 6\n"


# ---- conditions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("[STATUS] == 200", "200"), ("200 == [STATUS]", "200"), ("[STATUS] < 300", "2xx"), ("[status] <= 299", "2xx"),
        ("[STATUS] >= 400", "400-599"), ("[STATUS] > 499", "5xx"), ("[STATUS] != 500", "200-499,501-599"),
        ("300 > [STATUS]", "2xx"), ("[STATUS] == any(200, 201,429)", "200-201,429"), ("[STATUS] == pat(2*)", "2xx"),
        ("[STATUS] == pat(20?)", "200-209"), ("[STATUS] == pat([24]00)", "200,400"), ("[STATUS] == 101", "101"),
        ("[STATUS] == 0xC8", "200"), ("any(200, 204) == [STATUS]", "200,204"), ("[STATUS] == pat([)", ""),
    ],
)  # fmt: skip
def test_conditions_on_the_status(condition, expected):
    made = read_condition(condition)
    assert written_set(made.statuses) == expected
    assert made.lost is None


@pytest.mark.parametrize(
    ("condition", "assertions"),
    [
        ("[RESPONSE_TIME] < 300", [{"type": "response_time_below", "ms": 300}]),
        ("[RESPONSE_TIME] <= 1s", [{"type": "response_time_below", "ms": 1_001}]),
        ("500 > [RESPONSE_TIME]", [{"type": "response_time_below", "ms": 500}]),
        ("[CERTIFICATE_EXPIRATION] > 48h", [{"type": "certificate_days", "days": 2}]),
        ("[CERTIFICATE_EXPIRATION] >= 1h", [{"type": "certificate_days", "days": 1}]),
        ("[BODY] == pat(*x y/z*)", [{"type": "body_contains", "text": "x y/z"}]),
        ("[BODY] == a.b", [{"type": "body_matches", "pattern": r"\A\s*(?:a\.b)\s*\z"}]),
        ("[BODY] == pat(a*b?)", [{"type": "body_matches", "pattern": r"(?s)\A\s*a.*b.\s*\z"}]),
        ("[BODY] == any(a, b)", [{"type": "body_matches", "pattern": r"\A\s*(?:a|b)\s*\z"}]),
        ("[BODY].user.name == john", [{"type": "json_path", "path": "$.user.name", "op": "==", "value": "john"}]),
        ("[BODY].n == 1", [{"type": "json_path", "path": "$.n", "op": "==", "value": 1}]),
        ("[BODY].b == true", [{"type": "json_path", "path": "$.b", "op": "==", "value": True}]),
        ("[BODY][0].my-key > 5", [{"type": "json_path", "path": '$[0]["my-key"]', "op": ">", "value": 5}]),
        ("[BODY].a[0][1] != x", [{"type": "json_path", "path": "$.a[0][1]", "op": "!=", "value": "x"}]),
        ("[BODY].l[*].ok == true", [{"type": "json_path", "path": "$.l[*].ok", "op": "==", "value": True}]),
        ("[BODY].v == pat(1.*)", [{"type": "json_path", "path": "$.v", "op": "matches", "value": r"(?s)\A1\."}]),
        ("[BODY].v == any(a, b)", [{"type": "json_path", "path": "$.v", "op": "matches", "value": r"\A(?:a|b)\z"}]),
        ("has([BODY].e) == true", [{"type": "json_path", "path": "$.e", "op": "exists"}]),
        ("has([BODY].e) == false", [{"type": "json_path", "path": "$.e", "op": "absent"}]),
        ("has([BODY]) == true", [{"type": "body_matches", "pattern": r"\S"}]),
        (
            "len([BODY].x) == 3",
            [
                {"type": "json_path", "path": "$.x[2]", "op": "exists"},
                {"type": "json_path", "path": "$.x[3]", "op": "absent"},
            ],
        ),
        ("len([BODY]) > 0", [{"type": "json_path", "path": "$[0]", "op": "exists"}]),
        ("len([BODY].x) < 1", [{"type": "json_path", "path": "$.x[0]", "op": "absent"}]),
        ("[HEADER].Content-Type == text/html", [
            {"type": "header", "name": "Content-Type", "op": "==", "value": "text/html"}
        ]),
        ("[HEADER].X == pat(*a*)", [{"type": "header", "name": "X", "op": "contains", "value": "a"}]),
        ("has([HEADER].X) == true", [{"type": "header", "name": "X", "op": "matches", "value": ".*"}]),
        ("[CONNECTED] == true", []),
    ],
)  # fmt: skip
def test_conditions_that_become_assertions(condition, assertions):
    made = read_condition(condition)
    assert made.lost is None
    assert list(made.assertions) == assertions
    assert validate_assertions(assertions) is not None


@pytest.mark.parametrize(
    "condition",
    [
        "[BODY] != x", "[BODY] > 5", "[RESPONSE_TIME] > 5", "[CERTIFICATE_EXPIRATION] < 48h", "[IP] == pat(10.*)",
        "[DNS_RCODE] == NOERROR", "[DOMAIN_EXPIRATION] > 720h", "[CONTEXT].id == 5", "[HEADER].X != y",
        "age([HEADER].Last-Modified) < 10m", "len([BODY].x) != 3", "[BODY].x != pat(a*)", "[SOMETHING] == 1",
        "len([STATUS]) == 3", "[BODY].a[x] == 1", "len([BODY].x) < 0", "has([BODY].x) > 3", "1 == 2",
        "[BODY] == pat([z-a])",
    ],
)  # fmt: skip
def test_conditions_that_are_not_mapped_say_why(condition):
    made = read_condition(condition)
    assert made.lost
    assert made.assertions == ()
    assert made.statuses is None


def test_what_is_no_condition_is_refused():
    for written in ("", "[STATUS]", "[STATUS]==200", "[STATUS] = 200"):
        with pytest.raises(InvalidInputError):
            read_condition(written)


def test_globs():
    assert glob_pattern("a**b?[c-e]\\*.") == r"a.*b.[c-e]\*\."


def test_statuses_with_redirects_are_those_of_the_last_answer():
    config = "endpoints:\n- {{name: a, url: http://a/, client: {{ignore-redirect: {}}}, conditions: ['{}']}}\n"

    def made(ignore, condition):
        (found,) = accounted(read_gatus([("x", config.format(ignore, condition))]))
        return found

    assert valid(made("false", "[STATUS] < 400")).expected_status == "200-300,304-306,309-399"
    assert valid(made("true", "[STATUS] < 400")).expected_status == "200-399"
    assert valid(made("false", "[CONNECTED] == true")).expected_status == "200-300,304-306,309-599"
    only = made("false", "[STATUS] == 301")
    assert valid(only).expected_status == "301"
    assert "not followed" in notes_of(only)["conditions"]


@pytest.mark.parametrize(
    ("text", "ms"),
    [("30s", 30_000), ("1m30s", 90_000), ("1.5h", 5_400_000), ("500ms", 500), ("0", 0), ("1h0m0s", 3_600_000)],
)
def test_durations(text, ms):
    assert duration_ms(text) == ms
    assert duration_ms(written_ms(ms)) == ms if ms else True


@pytest.mark.parametrize("text", ["", "5", "s", "1d", "1 m", "-5s", None, True, "1h-1m", "9" * 400 + "s"])
def test_what_is_no_duration(text):
    with pytest.raises(InvalidInputError):
        duration_ms(text)


def test_days_are_durations_to_prometheus():
    assert duration_ms("1d12h", days=True) == 129_600_000
    with pytest.raises(InvalidInputError):
        duration_ms("1d")


def test_sets_of_statuses_as_they_are_written():
    assert written_set(FINAL_STATUSES) == "200-599"
    for text in ("200", "2xx", "200-299,301", "101,404,5xx"):
        assert statuses_of(written_set(statuses_of(text))) == statuses_of(text)


# ---- out -------------------------------------------------------------------------------------------------------------


def test_what_gatus_can_hold_comes_back(table, tmp_path):
    first = tmp_path / "config.yaml"
    first.write_text(
        "endpoints:\n"
        "- name: a\n  group: g/h\n  url: 'https://a.example/$$x'\n  method: PUT\n  interval: 90s\n  enabled: false\n"
        "  headers: {X-A: '${TOKEN} $$ $${x}'}\n  body: '$$5'\n"
        "  client: {timeout: 2500ms, ignore-redirect: true, insecure: true}\n"
        "  conditions: ['[STATUS] == any(200, 404)', '[RESPONSE_TIME] < 300', '[BODY] == pat(*ok*)',\n"
        "    '[BODY].a[0].b == x', '[BODY].n > 5', 'has([BODY].e) == false', '[CERTIFICATE_EXPIRATION] >= 48h',\n"
        "    '[HEADER].x-a == b']\n"
        "  alerts: [{type: slack, failure-threshold: 4, success-threshold: 3}]\n"
        "- {name: b, url: 'http://b.example/', conditions: ['[STATUS] == pat(2*)']}\n"
    )
    assert table("projects", "import", first).out == "added 2, updated 0\n"
    second = tmp_path / "exported.yaml"
    assert table("projects", "export", second, "--format", "gatus").err.splitlines()[-1] == "exported 2 projects"
    assert table("projects", "import", second).out == "added 0, updated 0, unchanged 2\n"


def test_what_gatus_can_not_hold_is_said(table):
    table.sql(
        "INSERT INTO projects (url, retries, ip_version, basic_auth, headers, assertions) VALUES ('http://a/', 2, 4, "
        '\'u:p\', \'{"X": "${file:token}"}\', \'[{"type": "body_matches", "pattern": "x"}]\')'
    )
    ran = table("projects", "export", "--format", "gatus")
    said = {line.split(": ")[1] for line in ran.err.splitlines()[:-1]}
    assert said == {"retries", "ip_version", "basic_auth", "headers", "assertions"}
    assert ran.out.startswith("endpoints:\n- name: project 1\n  url: http://a/\n")


def test_ten_thousand_endpoints(table, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(
        "d: &d {conditions: ['[STATUS] == 200', '[RESPONSE_TIME] < 500'], interval: 30s}\nendpoints:\n"
        + "".join(f"- {{<<: *d, name: 'n {at}', group: 'g {at % 7}', url: 'https://h{at}/'}}\n" for at in range(10_000))
    )
    assert table("projects", "import", file).out == "added 10000, updated 0\n"
    assert table("projects", "import", file).out == "added 0, updated 0, unchanged 10000\n"


def test_nothing_in_a_written_file_is_lost_by_a_name(table):
    rows = table.rows()
    assert write_gatus(rows).data == b"endpoints: []\n"
