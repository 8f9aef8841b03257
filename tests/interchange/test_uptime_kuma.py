"""Uptime Kuma: a backup in its real layout, with what is odd in such files."""

import json

import pytest

from cluster.errors import InvalidInputError
from cluster.interchange.uptime_kuma import MAPPED, NOT_MAPPED, read_uptime_kuma
from tests.interchange.accounting import accounted, approximated, lost, unaccounted, valid


def monitor(**changes):
    """A monitor as version 1.23 writes it: every field that any type has, most of them empty."""
    made = {
        "id": 1, "name": "a", "description": None, "pathName": "a", "parent": None, "childrenIDs": [],
        "url": "https://a.example/", "method": "GET", "hostname": None, "port": None, "maxretries": 0, "weight": 2000,
        "active": True, "forceInactive": False, "type": "http", "timeout": 48, "interval": 60, "retryInterval": 60,
        "resendInterval": 0, "keyword": None, "invertKeyword": False, "expiryNotification": False, "ignoreTls": False,
        "upsideDown": False, "packetSize": 56, "maxredirects": 10, "accepted_statuscodes": ["200-299"],
        "dns_resolve_type": "A", "dns_resolve_server": "1.1.1.1", "dns_last_result": None, "docker_container": "",
        "docker_host": None, "proxyId": None, "notificationIDList": {}, "tags": [], "maintenance": False,
        "mqttTopic": "", "mqttSuccessMessage": "", "databaseQuery": None, "authMethod": None, "grpcUrl": None,
        "grpcProtobuf": None, "grpcMethod": None, "grpcServiceName": None, "grpcEnableTls": False,
        "radiusCalledStationId": None, "radiusCallingStationId": None, "game": None, "gamedigGivenPortOnly": True,
        "httpBodyEncoding": None, "jsonPath": None, "expectedValue": None, "kafkaProducerTopic": None,
        "kafkaProducerBrokers": [], "kafkaProducerSsl": False, "kafkaProducerAllowAutoTopicCreation": False,
        "kafkaProducerMessage": None, "screenshot": None, "headers": None, "body": None, "grpcBody": None,
        "grpcMetadata": None, "basic_auth_user": None, "basic_auth_pass": None, "oauth_client_id": None,
        "oauth_client_secret": None, "oauth_token_url": None, "oauth_scopes": None,
        "oauth_auth_method": "client_secret_basic", "pushToken": None, "databaseConnectionString": None,
        "radiusUsername": None, "radiusPassword": None, "radiusSecret": None, "mqttUsername": "", "mqttPassword": "",
        "authWorkstation": None, "authDomain": None, "tlsCa": None, "tlsCert": None, "tlsKey": None,
        "kafkaProducerSaslOptions": {"mechanism": "None"}, "includeSensitiveData": True,
    }  # fmt: skip
    return made | changes


def backup(*monitors, **more):
    return json.dumps({"version": "1.23.16", "notificationList": [], "proxyList": [], "monitorList": monitors} | more)


def read(*monitors, **more):
    return accounted(read_uptime_kuma(backup(*monitors, **more), "backup.json"))


BACKUP = backup(
    monitor(id=9, name="Gruppe ☃", type="group", childrenIDs=[2, 10], url=None),
    monitor(id=10, name="inner", type="group", parent=9, active=False),
    monitor(id=1),
    monitor(
        id=2, name="b", parent=9, pathName="Gruppe ☃ / b", type="keyword", keyword='"ok": tr', method="POST",
        headers='{\n  "X-A": "${kept}",\n  "X-N": 5, "X-Null": null\n}', body='{"a": 1}', httpBodyEncoding="json",
        accepted_statuscodes=["200-299", "404", "301,302", "100-199"], maxredirects=3, ignoreTls=1, maxretries="2",
        interval=90, retryInterval=20, timeout=12.5, proxyId=4, description="what it is", expiryNotification=True,
        tags=[{"tag_id": 1, "monitor_id": 2, "value": "", "name": "prod", "color": "#DC2626"}],
        notificationIDList={"1": True}, weight=1000, resendInterval=3,
    ),
    monitor(id=3, name="c", parent=10, type="json-query", jsonPath="data.items[0].n", expectedValue="5", timeout=0),
    monitor(id=4, name="d", authMethod="basic", basic_auth_user="me", basic_auth_pass="p:${x}", maxredirects=0),
    monitor(id=5, name="e", type="keyword", keyword="error", invertKeyword=True),
    monitor(id=6, name="f", upsideDown=True),
    monitor(id=7, name="g", type="ping", hostname="a.example"),
    monitor(id=8, name="h", type="push", pushToken="secret"),
    monitor(id=11, name="i", type="json-query", jsonPath="$sum(a.b)", expectedValue="x"),
    monitor(id=12, name="j", authMethod="mtls", tlsCert="-----BEGIN", tlsKey="-----BEGIN"),
    monitor(id=13, name="k", proxyId=5, made_up=7),
    monitor(id=14, name="l", type="dns"),
    monitor(id=15, name="m", type="docker"),
    notificationList=[{"id": 1, "name": "mail"}],
    proxyList=[
        {"id": 4, "protocol": "http", "host": "proxy.example", "port": 3128, "auth": True, "username": "u@",
         "password": "p:w", "active": True, "default": False},
        {"id": 5, "protocol": "socks5", "host": "s.example", "port": 1080, "auth": False, "active": True},
    ],
)  # fmt: skip


@pytest.fixture(scope="module")
def found():
    return {each.label: each for each in accounted(read_uptime_kuma(BACKUP, "backup.json"))}


def test_a_plain_monitor(found):
    fields = valid(found["a"])
    assert (fields.name, fields.url, fields.interval, fields.unit) == ("a", "https://a.example/", 1, "minutes")
    assert (fields.timeout_ms, fields.expected_status, fields.down_after, fields.enabled) == (48_000, "2xx", 1, True)
    assert found["a"].notes == ()
    assert found["a"].where == "monitorList[2]"


def test_a_monitor_that_uses_much(found):
    candidate = found["Gruppe ☃/b"]
    fields = valid(candidate)
    assert (fields.name, fields.method, fields.body) == ("Gruppe ☃/b", "POST", '{"a": 1}')
    assert fields.headers == {"X-A": "$${kept}", "X-N": "5", "Content-Type": "application/json"}
    assert (fields.expected_status, fields.follow_redirects, fields.verify_tls) == ("101,2xx,404", True, False)
    assert (fields.interval, fields.unit, fields.timeout_ms, fields.down_after) == (90, "seconds", 12_500, 3)
    assert fields.proxy == "http://u%40:p%3Aw@proxy.example:3128"
    assert fields.assertions == [{"type": "body_contains", "text": '"ok": tr'}]
    assert set(lost(candidate)) == {
        "headers", "accepted_statuscodes", "description", "expiryNotification", "tags", "notificationIDList", "weight",
        "resendInterval",
    }  # fmt: skip
    assert set(approximated(candidate)) == {"maxredirects", "retryInterval"}


def test_the_others(found):
    query = found["Gruppe ☃/inner/c"]
    assert valid(query).assertions == [{"type": "json_path", "path": "$.data.items[0].n", "op": "==", "value": 5}]
    assert valid(query).enabled is False
    assert valid(query).timeout_ms == 48_000
    assert set(approximated(query)) == {"timeout", "expectedValue"}
    assert valid(found["d"]).basic_auth == "me:p:$${x}"
    assert valid(found["d"]).follow_redirects is False
    assert set(lost(found["e"])) == {"keyword", "invertKeyword"}
    assert valid(found["e"]).assertions is None
    assert set(lost(found["i"])) == {"jsonPath", "jsonPathOperator", "expectedValue"}
    assert set(lost(found["j"])) == {"authMethod", "tlsCert", "tlsKey"}
    assert "socks5" in lost(found["k"])["proxyId"]
    assert lost(found["k"])["made_up"] == "not a field that this import knows"


@pytest.mark.parametrize(
    ("label", "why"),
    [
        ("f", "upside down"), ("g", "'ping'"), ("h", "'push'"), ("l", "'dns'"), ("m", "'docker'"),
        ("Gruppe ☃", "a group"), ("Gruppe ☃/inner", "a group"),
    ],
)  # fmt: skip
def test_what_can_not_be_polled_is_skipped(found, label, why):
    assert why in found[label].skipped


def test_each_entry_and_each_field_is_accounted_for(found):
    entries = json.loads(BACKUP)["monitorList"]
    assert len(found) == len(entries)
    for entry, candidate in zip(entries, found.values(), strict=True):
        assert unaccounted(entry, candidate) == []
    assert {note.field for note in read_uptime_kuma(BACKUP, "x").notes} == {
        "version", "notificationList", "proxyList",
    }  # fmt: skip


def test_every_field_that_a_monitor_has_is_known():
    assert set(monitor()) <= set(MAPPED) | set(NOT_MAPPED)


def test_lists_as_version_2_gives_them():
    second = {
        "1": monitor(name="a", path=["g", "a"], parent=2, jsonPathOperator="==", cacheBust=False, conditions=[],
                     ipFamily="ipv6", remote_browser=None, rabbitmqNodes=[], smtpSecurity=None, snmpOid=None,
                     snmpVersion="2c", mqttCheckType="keyword", ping_numeric=True, ping_count=1,
                     ping_per_request_timeout=2, saveResponse=False, saveErrorResponse=True, responseMaxLength=1024),
        "2": monitor(id=2, name="g", type="group"),
        "3": monitor(id=3, name="q", type="json-query", jsonPath="$.a", jsonPathOperator=">=", expectedValue="1.5",
                     active=0, url="https://b.example/"),
    }  # fmt: skip
    for document in ({"monitorList": second}, list(second.values())):
        first, group, third = accounted(read_uptime_kuma(json.dumps(document), "x"))
        assert (first.label, valid(first).ip_version, first.notes) == ("g/a", 6, ())
        assert group.skipped is not None
        assert valid(third).assertions == [{"type": "json_path", "path": "$.a", "op": ">=", "value": 1.5}]
        assert valid(third).enabled is False


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"interval": "often"}, "interval: must be a number"), ({"headers": "{"}, "headers: not JSON"),
        ({"headers": "[1]"}, "headers: must be a map"),
        ({"accepted_statuscodes": ["ok"]}, "accepted_statuscodes: 'ok'"),
        ({"accepted_statuscodes": ["100-199"], "x": 1}, None),
        ({"accepted_statuscodes": ["600"]}, "accepted_statuscodes: none of them"),
        ({"active": "perhaps"}, "active: must be true or false"), ({"url": {}}, "url: must be text"),
        ({"parent": "x"}, "parent: must be the id"), ({"timeout": -1}, "timeout: must be a number"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_monitor(changes, error):
    (found,) = read(monitor(**changes))
    assert (found.wrong or "").startswith(error or "")
    assert (found.wrong is None) == (error is None)


def test_groups_that_contain_themselves_end():
    found = read(monitor(id=1, parent=2), monitor(id=2, name="g", type="group", parent=3), monitor(id=3, parent=2))
    assert found[0].label == "a/g/a"


@pytest.mark.parametrize("text", ["5", '{"monitorList": 5}', "[", '"x"'])
def test_what_is_no_backup(text):
    with pytest.raises(InvalidInputError):
        read_uptime_kuma(text, "x")


def test_import_is_found_out_by_its_content_and_again_changes_nothing(table, tmp_path):
    file = tmp_path / "Uptime_Kuma_Backup_2026.json"
    file.write_text(json.dumps(json.loads(BACKUP), indent=4))
    ran = table("projects", "import", file, "--dry-run")
    assert ran.out.splitlines()[-1] == "would add 8, update 0, skipped 7"
    assert "monitorList[8]: g: skipped: a monitor of type 'ping': ringpoll polls HTTP only" in ran.out.splitlines()
    assert "hint: monitorList[5] (d): secrets stand openly" in ran.err
    assert table("projects", "import", file).out == "added 8, updated 0, skipped 7\n"
    assert table("projects", "import", file).out == "added 0, updated 0, unchanged 8, skipped 7\n"


def test_monitors_of_one_name_are_refused_with_their_places(table, tmp_path):
    file = tmp_path / "backup.json"
    file.write_text(backup(monitor(id=1), monitor(id=2, url="https://b.example/")))
    ran = table("projects", "import", file)
    assert ran.err.splitlines()[0].startswith("monitorList[1]: a: the name 'a' is also in monitorList[0]")
    assert table("projects", "import", file, "--skip-invalid").out == "added 1, updated 0, wrong 1\n"


def test_what_a_backup_can_hold_comes_back(table, tmp_path):
    table.sql(
        "INSERT INTO projects (name, url, method, headers, body, expected_status, interval, unit, timeout_ms, "
        "follow_redirects, enabled, down_after, assertions, verify_tls, basic_auth, proxy, ip_version) VALUES "
        "('g/h/a', 'https://a.example/', 'POST', '{\"X\": \"$${x}\", \"Content-Type\": \"text/xml\"}', '<a/>', "
        "'2xx,404,503-504', 5, 'minutes', 2500, false, false, 4, "
        '\'[{"type": "body_contains", "text": "ok"}]\', '
        "false, 'me:pw', 'http://u:p@proxy.example:3128', 4), "
        "('g/b', 'http://b.example/', 'GET', NULL, NULL, '2xx', 30, 'seconds', 30000, true, true, 1, "
        '\'[{"type": "json_path", "path": "$.a[0]", "op": "==", "value": 5}]\', true, NULL, NULL, NULL)'
    )
    file = tmp_path / "out.json"
    assert table("projects", "export", file, "--format", "uptime-kuma").err == "exported 2 projects\n"
    assert table("projects", "import", file).out == "added 0, updated 0, unchanged 2, skipped 2\n"
    document = json.loads(file.read_text())
    assert {each["name"]: each["type"] for each in document["monitorList"]} == {
        "g": "group", "h": "group", "a": "keyword", "b": "json-query",
    }  # fmt: skip


def test_what_a_backup_can_not_hold_is_said(table):
    table.sql(
        "INSERT INTO projects (url, method, body, up_after, bearer_token, headers, assertions) VALUES "
        "('http://a/', 'POST', 'x', 2, 't', '{\"X\": \"${TOKEN}\"}', "
        '\'[{"type": "body_contains", "text": "a"}, {"type": "response_time_below", "ms": 5}]\')'
    )
    ran = table("projects", "export", "--format", "uptime-kuma")
    assert {line.split(": ")[1] for line in ran.err.splitlines()[:-1]} == {
        "body", "up_after", "bearer_token", "headers", "assertions",
    }  # fmt: skip


def test_ten_thousand_monitors(table, tmp_path):
    file = tmp_path / "backup.json"
    file.write_text(backup(*(monitor(id=at, name=f"m {at}") for at in range(1, 10_001))))
    assert table("projects", "import", file).out == "added 10000, updated 0\n"
    assert table("projects", "import", file).out == "added 0, updated 0, unchanged 10000\n"
