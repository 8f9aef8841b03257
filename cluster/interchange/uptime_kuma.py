"""Uptime Kuma: the JSON backup of version 1, and lists of monitors as version 2 gives them.  Pure.

Monitors over HTTP (``http``, ``keyword``, ``json-query``) become projects, with the groups they are in in front of the
name.  A monitor that is upside down is healthy when it fails, which no project is, so it is skipped as are other types.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import orjson

from cluster.assertions import validate_assertions
from cluster.errors import InvalidInputError
from cluster.interchange.gatus import interval_and_unit
from cluster.interchange.json_file import read_json_document
from cluster.interchange.model import (
    EntryBook,
    Exported,
    ExportNote,
    FieldNote,
    FieldOutcome,
    ImportCandidate,
    Imported,
    fitting_name,
    literal_value,
    shown,
)
from cluster.interchange.status_sets import expect_statuses, statuses_of, written_set
from cluster.project import FIELD_NAMES, TIMEOUT_MS_MAX, ProjectFields
from cluster.ticks import UNIT_MS

MAPPED = {
    "id": "finds the groups of other monitors; projects get ids of their own",
    "name": "`name`, behind its groups",
    "pathName": "the name with its groups, which are found by `parent`",
    "path": "the name with its groups, which are found by `parent`",
    "parent": "`name`, as `group/name`",
    "type": "`http`, `keyword` and `json-query`; other types are skipped",
    "active": "`enabled`; also off when a group above is",
    "forceInactive": "`enabled`",
    "url": "`url`",
    "method": "`method`",
    "headers": "`headers`, out of JSON in a text; `${` becomes `$${`, which is no reference",
    "body": "`body`, and not with GET or HEAD",
    "httpBodyEncoding": "header `Content-Type` of a body, where there is none",
    "interval": "`interval`",
    "timeout": "`timeout_ms`; 0.8 of the interval where it is left out or 0",
    "maxretries": "`down_after`, one more; retries come at the interval, not at `retryInterval`",
    "retryInterval": "see `maxretries`",
    "accepted_statuscodes": "`expected_status`; statuses below 200 and above 599 are not mapped",
    "maxredirects": "`follow_redirects`, false for 0; ringpoll follows at most 10",
    "ignoreTls": "`verify_tls`",
    "upsideDown": "a monitor that is upside down is skipped",
    "keyword": "`body_contains`",
    "invertKeyword": "a keyword that must not be there is not mapped",
    "jsonPath": "`json_path`, of paths such as `data.items[0].name`; other JSONata is not mapped",
    "jsonPathOperator": "the comparison: `==`, `!=`, `<`, `<=`, `>`, `>=`, `contains`",
    "expectedValue": "the value of the comparison",
    "authMethod": "`basic` or none; see `basic_auth_user`",
    "basic_auth_user": "`basic_auth`",
    "basic_auth_pass": "`basic_auth`",
    "proxyId": "`proxy`, out of `proxyList`; only HTTP proxies",
    "ipFamily": "`ip_version`",
}
_ALERTS = "ringpoll sends no alerts"
_OTHER_TYPE = "belongs to another type of monitor"
NOT_MAPPED = {
    "description": "ringpoll has no descriptions of projects",
    "tags": "ringpoll has no tags of projects",
    "weight": "ringpoll has no order of projects but name and id",
    "childrenIDs": "is said by `parent` of the others",
    "notificationIDList": _ALERTS,
    "notificationRules": _ALERTS,
    "notification_rules": _ALERTS,
    "resendInterval": _ALERTS,
    "expiryNotification": "an alert, not a check; an assertion `certificate_days` fails the poll",
    "domainExpiryNotification": "ringpoll asks no registry of domains",
    "maintenance": "ringpoll has no maintenance windows",
    "dependencies": "projects do not depend on each other",
    "cacheBust": "the URL is polled as it is written",
    "expectedTlsAlert": "a handshake that fails is a failure",
    "saveResponse": "bodies are not kept",
    "saveErrorResponse": "bodies are not kept",
    "responseMaxLength": "bodies are not kept",
    "screenshot": _OTHER_TYPE,
    "screenshot_delay": _OTHER_TYPE,
    "remote_browser": _OTHER_TYPE,
    "includeSensitiveData": "says only what the file holds",
    "oauth_client_id": "ringpoll gets no tokens; a bearer_token can be given",
    "oauth_client_secret": "ringpoll gets no tokens; a bearer_token can be given",
    "oauth_token_url": "ringpoll gets no tokens; a bearer_token can be given",
    "oauth_scopes": "ringpoll gets no tokens; a bearer_token can be given",
    "oauth_auth_method": "ringpoll gets no tokens; a bearer_token can be given",
    "oauth_audience": "ringpoll gets no tokens; a bearer_token can be given",
    "authWorkstation": "ringpoll has no NTLM",
    "authDomain": "ringpoll has no NTLM",
    "tlsCa": "a file on the workers' host is named by `ca_file`",
    "tlsCert": "a file on the workers' host is named by `client_cert_file`",
    "tlsKey": "a file on the workers' host is named by `client_key_file`",
    "hostname": _OTHER_TYPE,
    "port": _OTHER_TYPE,
    "packetSize": _OTHER_TYPE,
    "ping_numeric": _OTHER_TYPE,
    "ping_count": _OTHER_TYPE,
    "ping_per_request_timeout": _OTHER_TYPE,
    "dns_resolve_type": _OTHER_TYPE,
    "dns_resolve_server": _OTHER_TYPE,
    "dns_last_result": _OTHER_TYPE,
    "docker_container": _OTHER_TYPE,
    "docker_host": _OTHER_TYPE,
    "pushToken": _OTHER_TYPE,
    "mqttTopic": _OTHER_TYPE,
    "mqttSuccessMessage": _OTHER_TYPE,
    "mqttCheckType": _OTHER_TYPE,
    "mqttUsername": _OTHER_TYPE,
    "mqttPassword": _OTHER_TYPE,
    "mqttWebsocketPath": _OTHER_TYPE,
    "databaseQuery": _OTHER_TYPE,
    "databaseConnectionString": _OTHER_TYPE,
    "grpcUrl": _OTHER_TYPE,
    "grpcProtobuf": _OTHER_TYPE,
    "grpcMethod": _OTHER_TYPE,
    "grpcServiceName": _OTHER_TYPE,
    "grpcEnableTls": _OTHER_TYPE,
    "grpcBody": _OTHER_TYPE,
    "grpcMetadata": _OTHER_TYPE,
    "radiusUsername": _OTHER_TYPE,
    "radiusPassword": _OTHER_TYPE,
    "radiusSecret": _OTHER_TYPE,
    "radiusCalledStationId": _OTHER_TYPE,
    "radiusCallingStationId": _OTHER_TYPE,
    "game": _OTHER_TYPE,
    "gamedigGivenPortOnly": _OTHER_TYPE,
    "kafkaProducerTopic": _OTHER_TYPE,
    "kafkaProducerBrokers": _OTHER_TYPE,
    "kafkaProducerSsl": _OTHER_TYPE,
    "kafkaProducerAllowAutoTopicCreation": _OTHER_TYPE,
    "kafkaProducerMessage": _OTHER_TYPE,
    "kafkaProducerSaslOptions": _OTHER_TYPE,
    "rabbitmqNodes": _OTHER_TYPE,
    "rabbitmqUsername": _OTHER_TYPE,
    "rabbitmqPassword": _OTHER_TYPE,
    "snmpOid": _OTHER_TYPE,
    "snmpVersion": _OTHER_TYPE,
    "smtpSecurity": _OTHER_TYPE,
    "system_service_name": _OTHER_TYPE,
    "conditions": _OTHER_TYPE,
}
FILE_NOT_MAPPED = {
    "version": "says only which version wrote the file",
    "notificationList": _ALERTS,
    "proxyList": "a proxy is written into each project that uses it",
}
# What a field holds that says nothing: there is nothing to lose in it.
_SAYS_NOTHING: tuple[Any, ...] = (None, "", False, 0, [], {})
_DEFAULTS = {
    "weight": 2000,
    "packetSize": 56,
    "dns_resolve_type": "A",
    "dns_resolve_server": "1.1.1.1",
    "grpcMetadata": None,
    "gamedigGivenPortOnly": True,
    "mqttCheckType": "keyword",
    "snmpVersion": "2c",
    "kafkaProducerSaslOptions": {"mechanism": "None"},
    "ping_numeric": True,
    "ping_count": 1,
    "ping_per_request_timeout": 2,
    "includeSensitiveData": True,
    "responseMaxLength": 1024,
    "saveErrorResponse": True,
    "oauth_auth_method": "client_secret_basic",
}
_HTTP_TYPES = frozenset({"http", "keyword", "json-query"})
_PATH = re.compile(r"\$?\.?([A-Za-z_]\w*|\[\d{1,9}\])((?:\.[A-Za-z_]\w*|\[\d{1,9}\])*)", re.ASCII)
_CONTENT_TYPES = {"json": "application/json", "form": "application/x-www-form-urlencoded", "xml": "text/xml"}
_CODES = re.compile(r"\s*(\d{3})\s*(?:-\s*(\d{3})\s*)?")
_COMPARISONS = frozenset({"==", "!=", "<", "<=", ">", ">=", "contains"})
_FLAG_TEXTS = {"true": True, "1": True, "false": False, "0": False, "": False}  # 0 and 1: of a database without flags
_REDIRECTS_MAX = 10


def read_uptime_kuma(text: str, where: str) -> Imported:
    document = read_json_document(text, where)
    monitors: Any = document
    key = "monitorList"
    notes: tuple[FieldNote, ...] = ()
    proxies: Mapping[Any, Any] = {}
    if isinstance(document, dict) and key in document:
        monitors = document[key]
        proxies = _by_id(document.get("proxyList"))
        notes = tuple(
            FieldNote(
                str(name), FieldOutcome.NOT_MAPPED, FILE_NOT_MAPPED.get(name, "not a part that this import knows")
            )
            for name in document
            if name != key and document[name] not in _SAYS_NOTHING
        )
    if isinstance(monitors, dict):  # by id, as the API of version 2 has it
        places = [f"{key}[{shown(name)}]" for name in monitors]
        monitors = list(monitors.values())
    elif isinstance(monitors, list):
        places = [f"{key}[{at}]" for at in range(len(monitors))]
    else:
        raise InvalidInputError(f"{where}: must hold a list or a map of monitors")
    known = _by_id(monitors)
    return Imported(
        [_monitor(each, place, known, proxies) for each, place in zip(monitors, places, strict=True)], notes
    )


def _by_id(entries: Any) -> dict[Any, Mapping[str, Any]]:
    listed = entries if isinstance(entries, list) else []
    return {each["id"]: each for each in listed if isinstance(each, dict) and isinstance(each.get("id"), int)}


def _monitor(
    entry: Any, where: str, known: Mapping[Any, Mapping[str, Any]], proxies: Mapping[Any, Mapping[str, Any]]
) -> ImportCandidate:
    if not isinstance(entry, dict):
        return ImportCandidate(where, "", wrong="must be a map of fields")
    groups, enabled = _groups(entry, known)
    name = entry.get("name")
    label = "/".join([*groups, name if isinstance(name, str) else ""])
    book = EntryBook(entry, where, label)
    kind = entry.get("type")
    if kind == "group":
        return book.skip("a group: it is in the names of its monitors")
    if not isinstance(kind, str) or kind not in _HTTP_TYPES:
        return book.skip(f"a monitor of type {shown(kind)}: ringpoll polls HTTP only")
    try:
        if book.take_flag("upsideDown", _FLAG_TEXTS):
            return book.skip("is upside down, a success when it fails; no project is")
        project = _project(book, entry, fitting_name(label), proxies)
        project["enabled"] = project["enabled"] and enabled
    except InvalidInputError as error:
        return book.wrong(str(error))
    for field in book.left:
        value = entry[field]
        if value in _SAYS_NOTHING or (field in _DEFAULTS and value == _DEFAULTS[field]):
            book.take(field)
    return book.project(project, NOT_MAPPED)


def _is_off(value: Any) -> bool:
    return str(value).lower() in {"false", "0"}


def _groups(entry: Mapping[str, Any], known: Mapping[Any, Mapping[str, Any]]) -> tuple[list[str], bool]:
    """The names of the groups above, outermost first, and whether all of them are active."""
    names: list[str] = []
    enabled = True
    parent = entry.get("parent")
    above: set[int] = set()
    while isinstance(parent, int) and parent in known and parent not in above:
        above.add(parent)
        group = known[parent]
        names.insert(0, str(group.get("name") or ""))
        enabled = enabled and not _is_off(group.get("active"))
        parent = group.get("parent")
    return names, enabled


def _project(
    book: EntryBook, entry: Mapping[str, Any], name: str, proxies: Mapping[Any, Mapping[str, Any]]
) -> dict[str, Any]:
    for field in ("id", "name", "type", "pathName", "path"):
        book.take(field)
    if (parent := book.take("parent")) is not None and not isinstance(parent, int):
        raise InvalidInputError("parent: must be the id of a group")
    project: dict[str, Any] = {"name": name, "url": _text(book, "url") or ""}
    is_active = book.take_flag("active", _FLAG_TEXTS, default=True)
    project["enabled"] = is_active and not book.take_flag("forceInactive", _FLAG_TEXTS)
    method = (_text(book, "method") or "GET").upper()
    project["method"] = method
    _request(book, project, method)
    _schedule(book, project)
    _answer(book, project)
    _body_checks(book, project, str(entry["type"]))
    if book.take_flag("ignoreTls", _FLAG_TEXTS):
        project["verify_tls"] = False
    _authorization(book, project)
    _proxy(book, project, proxies)
    if (family := _text(book, "ipFamily")) in {"ipv4", "ipv6"}:
        project["ip_version"] = int(family[-1])
    elif family:
        book.lost("ipFamily", f"{shown(family)} is neither ipv4 nor ipv6")
    return project


def _text(book: EntryBook, field: str) -> str | None:
    value = book.take(field)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidInputError(f"{field}: must be text")
    return str(value)


def _number(book: EntryBook, field: str) -> float | None:
    value = book.take(field)
    if isinstance(value, str) and re.fullmatch(r"\s*\d{1,9}(\.\d{1,9})?\s*", value):
        value = float(value)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise InvalidInputError(f"{field}: must be a number, not {shown(value)}")
    return float(value)


def _request(book: EntryBook, project: dict[str, Any], method: str) -> None:
    headers = _headers(book)
    body = _text(book, "body")
    encoding = _text(book, "httpBodyEncoding")
    if body and method in {"GET", "HEAD"}:
        book.lost("body", f"Uptime Kuma sends none with {method}")
        body = None
    if body:
        project["body"] = body
        kind = _CONTENT_TYPES.get(encoding or "json")
        if kind is None:
            book.lost("httpBodyEncoding", f"{shown(encoding)} is not an encoding that this import knows")
        elif not any(name.lower() == "content-type" for name in headers):
            headers["Content-Type"] = kind
    if headers:
        project["headers"] = headers


def _headers(book: EntryBook) -> dict[str, str]:
    written = book.take("headers")
    if isinstance(written, str) and written.strip():
        try:
            written = orjson.loads(written)
        except orjson.JSONDecodeError as error:
            raise InvalidInputError(f"headers: not JSON: {error}") from error
    if not written:
        return {}
    if not isinstance(written, dict):
        raise InvalidInputError("headers: must be a map of names to values, as JSON")
    headers = {}
    for name, value in written.items():
        if value is None or isinstance(value, dict | list):
            book.lost("headers", f"{shown(name)} has no value that a header can have")
            continue
        plain = value if isinstance(value, str) else orjson.dumps(value).decode()
        headers[name] = literal_value(plain)
    return headers


def _schedule(book: EntryBook, project: dict[str, Any]) -> None:
    interval = _number(book, "interval") or 60
    seconds = max(1, -int(-interval // 1))
    project["interval"], project["unit"] = interval_and_unit(seconds)
    timeout = _number(book, "timeout")
    if not timeout:
        timeout = seconds * 0.8
        book.approximated("timeout", f"0.8 of the interval, {timeout:g} s")
    project["timeout_ms"] = min(TIMEOUT_MS_MAX, max(1, round(timeout * 1_000)))
    if timeout * 1_000 > TIMEOUT_MS_MAX:
        book.approximated("timeout", f"at most {TIMEOUT_MS_MAX // 1_000} s")
    retries = _number(book, "maxretries") or 0
    retry_interval = _number(book, "retryInterval")
    if retries:
        project["down_after"] = int(retries) + 1
        if retry_interval is not None and retry_interval != interval:
            book.approximated("retryInterval", f"retries come at the interval of {seconds} s")


def _answer(book: EntryBook, project: dict[str, Any]) -> None:
    redirects = _number(book, "maxredirects")
    project["follow_redirects"] = redirects is None or redirects > 0
    if redirects is not None and redirects not in {0, _REDIRECTS_MAX}:
        book.approximated("maxredirects", f"at most {_REDIRECTS_MAX} are followed")
    codes = book.take("accepted_statuscodes")
    if isinstance(codes, str):
        codes = codes.split(",")
    if codes is None or codes == []:
        codes = ["200-299"]
    if not isinstance(codes, list):
        raise InvalidInputError("accepted_statuscodes: must be a list")
    statuses: set[int] = set()
    for code in (part for each in codes for part in str(each).split(",")):
        found = _CODES.fullmatch(code)
        if found is None:
            raise InvalidInputError(f"accepted_statuscodes: {shown(code)} is neither a status nor a range")
        part = set(range(int(found[1]), int(found[2] or found[1]) + 1))
        if not all(each == 101 or 200 <= each < 600 for each in part):
            book.lost("accepted_statuscodes", f"{code.strip()}: an answer ends with 101 or a status of 200 to 599")
        statuses |= part
    usable = statuses_of("101,200-599") & statuses
    if not usable:
        raise InvalidInputError("accepted_statuscodes: none of them can end an answer")
    expect_statuses(book, "accepted_statuscodes", project, frozenset(usable))


def _body_checks(book: EntryBook, project: dict[str, Any], kind: str) -> None:
    """Fields of the other two types stay from before a monitor's type was changed, and say nothing then."""
    keyword, inverted = _text(book, "keyword"), book.take_flag("invertKeyword", _FLAG_TEXTS)
    path, op = _text(book, "jsonPath"), _text(book, "jsonPathOperator") or "=="
    expected = book.take("expectedValue")
    assertion: dict[str, Any] | None = None
    field = "keyword"
    if kind == "keyword" and keyword:
        if inverted:
            for each in ("keyword", "invertKeyword"):
                book.lost(each, f"there is no assertion that {shown(keyword)} must not be in a body")
        else:
            assertion = {"type": "body_contains", "text": keyword}
    elif kind == "json-query":
        field = "jsonPath"
        assertion = _json_query(book, path or "", op, expected)
    if assertion is None:
        return
    try:
        validate_assertions([assertion])
    except InvalidInputError as error:
        book.lost(field, str(error))
        return
    project["assertions"] = [assertion]


def _json_query(book: EntryBook, path: str, op: str, expected: Any) -> dict[str, Any] | None:
    found = _PATH.fullmatch(path.strip())
    if found is None or op not in _COMPARISONS or expected is None:
        why = f"{shown(path)} {op}: only paths such as data.items[0].name are mapped, compared with a value"
        for field in ("jsonPath", "jsonPathOperator", "expectedValue"):
            book.lost(field, why)
        return None
    first = found[1] if found[1].startswith("[") else f".{found[1]}"
    value = _typed(expected)
    if not isinstance(value, str):
        book.approximated("expectedValue", f"Uptime Kuma would take the text {shown(str(expected))} for it, too")
    return {"type": "json_path", "path": f"${first}{found[2]}", "op": op, "value": value}


def _typed(written: Any) -> Any:
    """The value that JSON has for a text that is written in a form."""
    if not isinstance(written, str):
        return written
    if written in {"true", "false"} or re.fullmatch(r"-?(0|[1-9]\d{0,14})(\.\d{1,9})?", written):
        return orjson.loads(written)
    return written


def _authorization(book: EntryBook, project: dict[str, Any]) -> None:
    method = _text(book, "authMethod")
    user, password = _text(book, "basic_auth_user"), _text(book, "basic_auth_pass")
    if method in {None, "", "null", "basic"}:
        if user:
            project["basic_auth"] = literal_value(f"{user}:{password or ''}")
        return
    book.lost("authMethod", f"{shown(method)}: ringpoll has basic_auth, bearer_token and certificates in files")
    if method == "ntlm" and user:
        for field in ("basic_auth_user", "basic_auth_pass"):
            book.lost(field, "ringpoll has no NTLM")


def _proxy(book: EntryBook, project: dict[str, Any], proxies: Mapping[Any, Mapping[str, Any]]) -> None:
    proxy_id = book.take("proxyId")
    if proxy_id is None:
        return
    proxy = proxies.get(proxy_id) if isinstance(proxy_id, int) else None
    if proxy is None:
        book.lost("proxyId", f"there is no proxy {shown(proxy_id)} in the file; it is polled directly")
    elif _is_off(proxy.get("active")):
        return
    elif proxy.get("protocol") != "http":
        book.lost("proxyId", f"a proxy of protocol {shown(proxy.get('protocol'))}: only http; it is polled directly")
    else:
        user = ""
        if proxy.get("auth"):
            words = [quote(str(proxy.get(field) or ""), safe="") for field in ("username", "password")]
            user = f"{':'.join(words)}@"
        host = str(proxy.get("host") or "")
        project["proxy"] = f"http://{user}{f'[{host}]' if ':' in host else host}:{proxy.get('port') or 80}"


# ---- out -------------------------------------------------------------------------------------------------------------

_KEPT = frozenset(
    {"url", "name", "enabled", "method", "headers", "body", "interval", "unit", "timeout_ms", "follow_redirects"}
    | {"expected_status", "assertions", "down_after", "verify_tls", "basic_auth", "proxy", "ip_version"}
)
_VERSION = "1.23.16"


def write_uptime_kuma(rows: Iterable[Mapping[str, Any]]) -> Exported:
    monitors: list[dict[str, Any]] = []
    groups: dict[tuple[str, ...], int] = {}
    proxies: dict[str, dict[str, Any]] = {}
    notes: list[ExportNote] = []
    count = 0
    for row in rows:
        path = [part for part in row["name"].split("/") if part] or [f"project {row['id']}"]
        parent = _group_id(path[:-1], groups, monitors)
        entry, lost = _written_monitor(row, proxies)
        entry |= {"id": len(monitors) + 1, "name": path[-1], "parent": parent}
        if parent is not None and "/".join(path) != row["name"]:
            lost.append(("name", f"becomes {shown('/'.join(path))}"))
        monitors.append(entry)
        notes += [ExportNote(row["id"], field, text) for field, text in lost]
        count += 1
    document = {
        "version": _VERSION,
        "notificationList": [],
        "monitorList": monitors,
        "proxyList": list(proxies.values()),
    }
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    return Exported(orjson.dumps(document, option=options), count, tuple(notes))


def _group_id(path: Sequence[str], groups: dict[tuple[str, ...], int], monitors: list[dict[str, Any]]) -> int | None:
    parent = None
    for depth in range(1, len(path) + 1):
        key = tuple(path[:depth])
        if key not in groups:
            groups[key] = len(monitors) + 1
            monitors.append(
                {"id": groups[key], "name": path[depth - 1], "type": "group", "parent": parent, "active": True}
                | {"interval": 60, "maxretries": 0, "accepted_statuscodes": ["200-299"]}
            )
        parent = groups[key]
    return parent


def _written_monitor(
    row: Mapping[str, Any], proxies: dict[str, dict[str, Any]]
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    default = ProjectFields(url="")
    lost = [
        (name, "Uptime Kuma has nothing like it")
        for name in FIELD_NAMES
        if name not in _KEPT and row[name] != getattr(default, name)
    ]
    interval = row["interval"] * UNIT_MS[row["unit"]] // 1_000
    entry: dict[str, Any] = {
        "type": "http",
        "url": row["url"],
        "method": row["method"],
        "active": row["enabled"],
        "interval": interval,
        "retryInterval": interval,
        "resendInterval": 0,
        "maxretries": row["down_after"] - 1,
        "timeout": row["timeout_ms"] / 1_000,
        "accepted_statuscodes": _written_codes(row["expected_status"]),
        "maxredirects": _REDIRECTS_MAX if row["follow_redirects"] else 0,
        "ignoreTls": not row["verify_tls"],
        "upsideDown": False,
        "expiryNotification": False,
        "notificationIDList": {},
        "tags": [],
        "headers": None,
        "body": row["body"],
        "httpBodyEncoding": "json",
        "authMethod": None,
        "basic_auth_user": None,
        "basic_auth_pass": None,
        "keyword": None,
        "invertKeyword": False,
        "proxyId": None,
    }
    if row["headers"]:
        entry["headers"] = orjson.dumps({k: _literal(v, "headers", lost) for k, v in row["headers"].items()}).decode()
    if row["basic_auth"] is not None:
        user, _, password = _literal(row["basic_auth"], "basic_auth", lost).partition(":")
        entry |= {"authMethod": "basic", "basic_auth_user": user, "basic_auth_pass": password}
    if row["ip_version"] is not None:
        entry["ipFamily"] = f"ipv{row['ip_version']}"
    _written_body(row, entry, lost)
    _written_assertions(row["assertions"] or (), entry, lost)
    if row["proxy"] is not None:
        entry["proxyId"] = _written_proxy(row["proxy"], proxies)
    return entry, lost


def _written_codes(expected: str) -> list[str]:
    """Uptime Kuma has whole hundreds as ranges, and single statuses."""
    made = []
    for part in written_set(statuses_of(expected)).split(","):
        first, dash, last = part.partition("-")
        if part.endswith("xx"):
            made.append(f"{part[0]}00-{part[0]}99")
        elif dash:
            hundreds = [(first, last)] if first[0] == last[0] else []
            made += [part] if hundreds else _cut_at_hundreds(int(first), int(last))
        else:
            made.append(part)
    return made


def _cut_at_hundreds(first: int, last: int) -> list[str]:
    made = []
    while first <= last:
        end = min(last, first - first % 100 + 99)
        made.append(f"{first}-{end}" if end > first else str(first))
        first = end + 1
    return made


def _literal(value: str, field: str, lost: list[tuple[str, str]]) -> str:
    if re.search(r"(?<!\$)\$\{", value):
        lost.append((field, "a reference to a secret is only a text to Uptime Kuma"))
    return value.replace("$${", "${")


def _written_body(row: Mapping[str, Any], entry: dict[str, Any], lost: list[tuple[str, str]]) -> None:
    if not row["body"]:
        return
    if row["method"] in {"GET", "HEAD"}:
        lost.append(("body", f"Uptime Kuma sends none with {row['method']}"))
    kinds = {value: key for key, value in _CONTENT_TYPES.items()}
    given = {name.lower(): value for name, value in (row["headers"] or {}).items()}
    entry["httpBodyEncoding"] = kinds.get(given.get("content-type", ""), "json")
    if "content-type" not in given:
        lost.append(("body", "Uptime Kuma adds Content-Type: application/json"))


def _written_assertions(
    assertions: Iterable[Mapping[str, Any]], entry: dict[str, Any], lost: list[tuple[str, str]]
) -> None:
    """A monitor has room for one."""
    for each in assertions:
        if entry["type"] == "http" and each["type"] == "body_contains":
            entry |= {"type": "keyword", "keyword": each["text"]}
        elif (
            entry["type"] == "http"
            and each["type"] == "json_path"
            and each.get("op") in _COMPARISONS
            and _PATH.fullmatch(each["path"])
            and isinstance(value := each["value"], str | int | float)
        ):
            plain = value if isinstance(value, str) else orjson.dumps(value).decode()
            entry |= {"type": "json-query", "jsonPath": each["path"].removeprefix("$").removeprefix(".")}
            entry |= {"jsonPathOperator": each["op"], "expectedValue": plain}
        else:
            lost.append(("assertions", f"no room for {shown(orjson.dumps(each).decode())}"))


def _written_proxy(url: str, proxies: dict[str, dict[str, Any]]) -> int:
    if url not in proxies:
        parts = urlsplit(url)
        proxies[url] = {
            "id": len(proxies) + 1,
            "protocol": "http",
            "host": parts.hostname,
            "port": parts.port or 80,
            "auth": parts.username is not None,
            "username": None if parts.username is None else unquote(parts.username),
            "password": None if parts.password is None else unquote(parts.password),
            "active": True,
            "default": False,
        }
    found: int = proxies[url]["id"]
    return found
