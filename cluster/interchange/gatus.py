"""Gatus: ``config.yaml``, or a directory of such files, which Gatus reads as one.  Pure.

Endpoints over HTTP become projects, with the group in the name (``group/name``); the others can't be polled.  Gatus
replaces ``$NAME`` and ``${NAME}`` from its environment in the whole file; here that is a reference to a secret where
a project may have one (values of headers), and elsewhere has to be written out first.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from cluster.errors import InvalidInputError
from cluster.interchange.gatus_conditions import read_condition
from cluster.interchange.go_durations import duration_ms, written_ms
from cluster.interchange.model import (
    EntryBook,
    Exported,
    ExportNote,
    FieldNote,
    FieldOutcome,
    ImportCandidate,
    Imported,
    fitting_name,
    shown,
)
from cluster.interchange.status_sets import FINAL_STATUSES, expect_statuses, statuses_of
from cluster.interchange.yaml_text import line_of, read_yaml, written_yaml
from cluster.project import FIELD_NAMES, ProjectFields, Unit
from cluster.ticks import UNIT_MS

MAPPED = {
    "name": "`name`, behind the group",
    "group": "`name`, as `group/name`",
    "url": "`url`; only `http://` and `https://`",
    "enabled": "`enabled`",
    "method": "`method`",
    "headers": "`headers`; `$NAME` becomes `${NAME}`, the variable `RINGPOLL_SECRET_NAME` of the workers",
    "body": "`body`; `[ENDPOINT_NAME]`, `[ENDPOINT_GROUP]` and `[ENDPOINT_URL]` are filled in, "
    "`[RANDOM_STRING_N]` is not mapped",
    "graphql": '`body`, wrapped as `{"query": ...}`, and `Content-Type`',
    "interval": "`interval`, rounded up to whole seconds; 1m where it is left out",
    "conditions": "`expected_status` and `assertions`, see below",
    "alerts.failure-threshold": "`down_after`, the smallest of the alerts; 3 where an alert leaves it out",
    "alerts.success-threshold": "`up_after`, the smallest of the alerts; 2 where an alert leaves it out",
    "alerts.enabled": "an alert that is switched off says nothing of `down_after` and `up_after`",
    "alerts.type": "finds the default of its thresholds in `alerting`; who is told is not mapped",
    "client.timeout": "`timeout_ms`; 10s where it is left out",
    "client.insecure": "`verify_tls`",
    "client.ignore-redirect": "`follow_redirects`",
    "client.proxy-url": "`proxy`; only `http://`",
    "client.tls.certificate-file": "`client_cert_file`; the file must be on the workers' host, by an absolute path",
    "client.tls.private-key-file": "`client_key_file`, likewise",
    "client.network": "`ip_version`, of `ip4` and `ip6`; Gatus heeds it for icmp only",
}
NOT_MAPPED = {
    "ui": "ringpoll has no page for the endpoint that this sets up",
    "extra-labels": "ringpoll has no labels of projects",
    "maintenance-windows": "ringpoll has no maintenance windows",
    "dns": "ringpoll polls HTTP only",
    "ssh": "ringpoll polls HTTP only",
    "store": "ringpoll has no chain of requests",
    "always-run": "ringpoll has no chain of requests",
    "alerts.description": "ringpoll sends no alerts",
    "alerts.send-on-resolved": "ringpoll sends no alerts",
    "alerts.minimum-reminder-interval": "ringpoll sends no alerts",
    "alerts.provider-override": "ringpoll sends no alerts",
    "client.dns-resolver": "names are looked up as the workers' host does it",
    "client.oauth2": "ringpoll gets no tokens; a bearer_token can be given",
    "client.identity-aware-proxy": "ringpoll gets no tokens; a bearer_token can be given",
    "client.kerberos": "ringpoll has no Kerberos",
    "client.tunnel": "ringpoll has no SSH tunnels",
    "client.tls.renegotiation": "ringpoll does not renegotiate TLS",
}
FILE_NOT_MAPPED = {
    "alerting": "ringpoll sends no alerts; thresholds of a default-alert are used",
    "announcements": "ringpoll has none",
    "concurrency": "see --max-concurrent-http",
    "connectivity": "a fault of this machine makes a result unknown by itself",
    "debug": "see --log-level",
    "disable-monitoring-lock": "see --max-concurrent-http",
    "maintenance": "ringpoll has no maintenance windows",
    "metrics": "/metrics is always there",
    "remote": "ringpoll shows no instances of Gatus",
    "security": "users and tokens are made with ringpoll's own commands",
    "skip-invalid-config-update": "there is no file that is watched",
    "storage": "results are in PostgreSQL",
    "tunneling": "ringpoll has no SSH tunnels",
    "ui": "ringpoll's page is not set up by it",
    "web": "see --http",
}
LISTS = ("endpoints", "external-endpoints", "suites")
_ENVIRONMENT = re.compile(r"\$\$|\$\{([A-Za-z_][A-Za-z0-9_]*)\}|\$([A-Za-z_][A-Za-z0-9_]*)")
_RANDOM = re.compile(r"\[RANDOM_STRING_\d+\]")
_FLAGS = {"true": True, "yes": True, "on": True, "y": True, "false": False, "no": False, "off": False, "n": False}
_INTERVAL_MS = 60_000
_TIMEOUT_MS = 10_000
_THRESHOLDS = {"failure-threshold": 3, "success-threshold": 2}


def read_gatus(files: Sequence[tuple[str, str]]) -> Imported:
    """Out of the files of a directory, in order, or of one file, as names and texts."""
    documents = [(name, _document(text, name)) for name, text in files]
    several = len(files) > 1
    defaults = _default_alerts(document for _, document in documents)
    candidates: list[ImportCandidate] = []
    notes: list[FieldNote] = []
    for name, document in documents:
        place = f"{name} " if several else ""
        for key, value in document.items():
            if key in LISTS:
                candidates += _listed(key, value, place, defaults)
            elif value is not None:
                text = FILE_NOT_MAPPED.get(key, "not a part of a configuration that this import knows")
                notes.append(FieldNote(place + key, FieldOutcome.NOT_MAPPED, text))
    return Imported(candidates, tuple(notes))


def _document(text: str, name: str) -> Mapping[str, Any]:
    document = read_yaml(text, name, texts=True)
    if not isinstance(document, dict | None):
        raise InvalidInputError(f"{name}: must hold a map with endpoints")
    return document or {}


def _default_alerts(documents: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for document in documents:
        alerting = document.get("alerting")
        for provider, settings in alerting.items() if isinstance(alerting, dict) else ():
            default = settings.get("default-alert") if isinstance(settings, dict) else None
            if isinstance(default, dict):
                found[provider] = default
    return found


def _listed(key: str, value: Any, place: str, defaults: Mapping[str, Mapping[str, Any]]) -> list[ImportCandidate]:
    if not isinstance(value, list):
        return [] if value is None else [ImportCandidate(place + key, key, wrong="must be a list")]
    made = []
    for at, entry in enumerate(value):
        line = line_of(entry)
        where = f"{place}line {line}" if line is not None else f"{place}{key}[{at}]"
        if not isinstance(entry, dict):
            made.append(ImportCandidate(where, key, wrong="must be a map of fields"))
            continue
        book = EntryBook(entry, where, _label(entry))
        if key == "external-endpoints":
            made.append(book.skip("an external endpoint is told its results; ringpoll polls"))
        elif key == "suites":
            steps = entry.get("endpoints")
            count = len(steps) if isinstance(steps, list) else 0
            made.append(book.skip(f"a suite of {count} endpoints: ringpoll has no chain of requests"))
        else:
            made.append(_endpoint(book, defaults))
    return made


def _label(entry: Mapping[str, Any]) -> str:
    parts = [each for each in (entry.get("group"), entry.get("name")) if isinstance(each, str) and each]
    return "/".join(parts)


def _endpoint(book: EntryBook, defaults: Mapping[str, Mapping[str, Any]]) -> ImportCandidate:
    try:
        url = _filled(book.take("url"), "url")
        if book.take("dns") is not None or book.take("ssh") is not None:
            return book.skip("a check of DNS or SSH: ringpoll polls HTTP only")
        if not url.lower().startswith(("http://", "https://")):
            scheme = url.partition("://")[0]
            return book.skip(f"ringpoll polls http and https, not {shown(scheme)}")
        project = _project(book, url, defaults)
    except _UnknownVariableError as error:
        return book.skip(f"{error}, which Gatus takes from its environment; write it out")
    except _UnreachableError as error:
        return book.skip(str(error))
    except InvalidInputError as error:
        return book.wrong(str(error))
    return book.project(project, NOT_MAPPED)


def _project(book: EntryBook, url: str, defaults: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    name, group = _filled(book.take("name"), "name"), _filled(book.take("group"), "group")
    project: dict[str, Any] = {"url": url, "name": fitting_name(f"{group}/{name}" if group else name)}
    project["enabled"] = _flag(book.take("enabled"), "enabled", default=True)
    if method := _filled(book.take("method"), "method"):
        project["method"] = method
    headers = _headers(book)
    body = _body(book, name, group, url, headers)
    if headers:
        project["headers"] = headers
    if body is not None:
        project["body"] = body
    _read_interval(book, project)
    _client(book, project)
    _conditions(book, project)
    _alerts(book, project, defaults)
    return project


class _UnknownVariableError(InvalidInputError):
    pass


class _UnreachableError(InvalidInputError):
    pass


def _filled(value: Any, field: str) -> str:
    """A text in which ``$$`` is ``$``; a variable has no place there."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidInputError(f"{field}: must be text")

    def replace(match: re.Match[str]) -> str:
        if match[0] != "$$":
            raise _UnknownVariableError(f"{field} holds {match[0]}")
        return "$"

    return _ENVIRONMENT.sub(replace, value)


def _referring(value: Any, field: str) -> tuple[str, list[str]]:
    """A header's value with references for variables, and the names of these."""
    if not isinstance(value, str):
        raise InvalidInputError(f"{field}: must be text")
    names: list[str] = []

    def replace(match: re.Match[str]) -> str:
        if match[0] == "$$":
            # ``$${`` is how a reference is written that is none.
            return "$$" if value[match.end() : match.end() + 1] == "{" else "$"
        name: str = match[1] or match[2]
        names.append(name)
        return f"${{{name}}}"

    return _ENVIRONMENT.sub(replace, value), names


def _headers(book: EntryBook) -> dict[str, str]:
    written = book.take("headers")
    if written is None:
        return {}
    if not isinstance(written, dict):
        raise InvalidInputError("headers: must be a map of names to values")
    made = {}
    variables: list[str] = []
    for name, value in written.items():
        made[_filled(name, "headers")], found = _referring(
            "" if value is None else value, f"headers: the value of {shown(name)}"
        )
        variables += found
    if variables:
        names = ", ".join(f"RINGPOLL_SECRET_{each}" for each in dict.fromkeys(variables))
        book.approximated("headers", f"the workers' environment must have {names}")
    return made


def _body(book: EntryBook, name: str, group: str, url: str, headers: dict[str, str]) -> str | None:
    written = book.take("body")
    graphql = _flag(book.take("graphql"), "graphql", default=False)
    if written is None and not graphql:
        return None
    body = _filled(written, "body")
    for placeholder, value in (("NAME", name), ("GROUP", group), ("URL", url)):
        body = body.replace(f"[ENDPOINT_{placeholder}]", value)
    if _RANDOM.search(body):
        book.lost("body", "[RANDOM_STRING_N] is sent as it is written")
    if not graphql:
        return body
    if not any(each.lower() == "content-type" for each in headers):
        headers["Content-Type"] = "application/json"
    return orjson.dumps({"query": body}).decode()


def _flag(value: Any, field: str, *, default: bool) -> bool:
    if value is None:
        return default
    found = _FLAGS.get(_filled(value, field).lower())
    if found is None:
        raise InvalidInputError(f"{field}: must be true or false, not {shown(value)}")
    return found


def _time(value: Any, field: str, default: int) -> float:
    text = _filled(value, field)
    if not text:
        return default
    try:
        return duration_ms(text) or default
    except InvalidInputError as error:
        raise InvalidInputError(f"{field}: {error}") from error


def _read_interval(book: EntryBook, project: dict[str, Any]) -> None:
    interval_ms = _time(book.take("interval"), "interval", _INTERVAL_MS)
    seconds = max(1, -int(-interval_ms // 1_000))
    project["interval"], project["unit"] = interval_and_unit(seconds)
    if seconds * 1_000 != interval_ms:
        book.approximated("interval", f"rounded up to {seconds} s")


def interval_and_unit(seconds: int) -> tuple[int, Unit]:
    """In the largest unit that holds it."""
    for size, unit in ((3_600, "hours"), (60, "minutes")):
        if seconds % size == 0:
            return seconds // size, unit  # type: ignore[return-value]  # one of the words of Unit
    return seconds, "seconds"


def _client(book: EntryBook, project: dict[str, Any]) -> None:
    client = book.take_map("client")
    project["timeout_ms"] = _TIMEOUT_MS
    if client is None:
        return
    timeout_ms = _time(client.take("client.timeout"), "client.timeout", _TIMEOUT_MS)
    project["timeout_ms"] = max(1, round(timeout_ms))
    if _flag(client.take("client.insecure"), "client.insecure", default=False):
        project["verify_tls"] = False
    if _flag(client.take("client.ignore-redirect"), "client.ignore-redirect", default=False):
        project["follow_redirects"] = False
    proxy = _filled(client.take("client.proxy-url"), "client.proxy-url")
    if proxy.lower().startswith("http://"):
        project["proxy"] = proxy
    elif proxy:
        client.lost("client.proxy-url", "only a proxy with http:// is used; it is polled directly")
    network = _filled(client.take("client.network"), "client.network")
    if network not in {"", "ip"}:
        client.approximated("client.network", "Gatus heeds it for icmp only, so it is left out")
    if (tls := client.take_map("client.tls")) is not None:
        _tls(tls, project)
        tls.leave(NOT_MAPPED)
    client.leave(NOT_MAPPED)


def _tls(tls: EntryBook, project: dict[str, Any]) -> None:
    for field, name in (("certificate-file", "client_cert_file"), ("private-key-file", "client_key_file")):
        path = _filled(tls.take(f"client.tls.{field}"), f"client.tls.{field}")
        if not path:
            continue
        if path.startswith("/") and project["url"].lower().startswith("https:"):
            project[name] = path
            tls.approximated(f"client.tls.{field}", "must be there on the workers' host")
        else:
            tls.lost(f"client.tls.{field}", f"{name} takes an absolute path, and an https URL")
    if "client_key_file" in project and "client_cert_file" not in project:
        del project["client_key_file"]


def _conditions(book: EntryBook, project: dict[str, Any]) -> None:
    written = book.take("conditions")
    if written is None:
        written = []
    if not isinstance(written, list):
        raise InvalidInputError("conditions: must be a list")
    statuses: frozenset[int] | None = None
    assertions: list[dict[str, Any]] = []
    for at, condition in enumerate(written):
        field = f"conditions[{at}]"
        text = _filled(condition, field)
        made = read_condition(text)
        if made.impossible:
            raise _UnreachableError(f"{shown(text)}: {made.lost}")
        book.mapped(field)
        if made.lost is not None:
            book.lost(field, f"{text[:200]}: {made.lost}")
            continue
        if made.statuses is not None:
            statuses = made.statuses if statuses is None else statuses & made.statuses
        assertions += [each for each in made.assertions if each not in assertions]
        if made.note is not None:
            book.approximated(field, f"{text[:200]}: {made.note}")
    if statuses is None:
        statuses = FINAL_STATUSES
    if not statuses:
        raise InvalidInputError("conditions: no status meets all of those on [STATUS]")
    expect_statuses(book, "conditions", project, statuses)
    if assertions:
        project["assertions"] = assertions


def _alerts(book: EntryBook, project: dict[str, Any], defaults: Mapping[str, Mapping[str, Any]]) -> None:
    alerts = book.take("alerts")
    if alerts is None:
        return
    if not isinstance(alerts, list):
        raise InvalidInputError("alerts: must be a list")
    found: dict[str, set[int]] = {name: set() for name in _THRESHOLDS}
    for at, alert in enumerate(alerts):
        if not isinstance(alert, dict):
            raise InvalidInputError(f"alerts[{at}]: must be a map of fields")
        inner = book.within(f"alerts[{at}]", alert)
        kind = inner.take(f"alerts[{at}].type")
        default = defaults.get(str(kind), {})
        enabled = _flag(inner.take(f"alerts[{at}].enabled"), f"alerts[{at}].enabled", default=True)
        for name, fallback in _THRESHOLDS.items():
            value = inner.take(f"alerts[{at}].{name}") or default.get(name)
            if enabled:
                found[name].add(_count(value, f"alerts[{at}].{name}", fallback))
        for field in inner.left:
            reason = NOT_MAPPED.get(f"alerts.{field.partition('].')[2]}", "ringpoll sends no alerts")
            inner.lost(field, reason)
    for field, name in (("failure-threshold", "down_after"), ("success-threshold", "up_after")):
        if counts := found[field]:
            project[name] = min(counts)
            if len(counts) > 1:
                book.approximated("alerts", f"{name} is {min(counts)}, the smallest {field} of several")


def _count(value: Any, field: str, default: int) -> int:
    text = _filled(value, field)
    if not text:
        return default
    if not re.fullmatch(r"[-+]?[0-9]{1,9}", text):
        raise InvalidInputError(f"{field}: must be a whole number, not {shown(value)}")
    return int(text) if int(text) > 0 else default


# ---- out -------------------------------------------------------------------------------------------------------------

_ASSERTED = {
    "body_contains": lambda each: f"[BODY] == pat(*{each['text']}*)",
    "response_time_below": lambda each: f"[RESPONSE_TIME] < {each['ms']}",
    "certificate_days": lambda each: f"[CERTIFICATE_EXPIRATION] >= {each['days'] * 24}h",
}
_PLAIN = re.compile(r"[^*?\[\]\\,()]+")
_PATH = re.compile(r"\$((?:\.[A-Za-z_][A-Za-z0-9_]*|\[[0-9]+\])+)")
_KEPT = frozenset(
    {"url", "name", "enabled", "method", "headers", "body", "interval", "unit", "timeout_ms", "follow_redirects"}
    | {"expected_status", "assertions", "down_after", "up_after", "verify_tls", "proxy"}
    | {"client_cert_file", "client_key_file"}
)


def write_gatus(rows: Iterable[Mapping[str, Any]]) -> Exported:
    endpoints = []
    notes: list[ExportNote] = []
    alerted = False
    for row in rows:
        entry, lost = _written_endpoint(row)
        alerted = alerted or "alerts" in entry
        endpoints.append(entry)
        notes += [ExportNote(row["id"], field, text) for field, text in lost]
    return Exported(written_yaml({"endpoints": endpoints}), len(endpoints), tuple(notes))


def _written_endpoint(row: Mapping[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    default = ProjectFields(url="")
    lost = [
        (name, "Gatus has nothing like it")
        for name in FIELD_NAMES
        if name not in _KEPT and row[name] != getattr(default, name)
    ]
    group, slash, name = row["name"].rpartition("/")
    entry: dict[str, Any] = {"name": _escaped(name if slash and name else row["name"] or f"project {row['id']}")}
    if slash and name and group:
        entry["group"] = _escaped(group)
    entry["url"] = _escaped(row["url"])
    if not row["enabled"]:
        entry["enabled"] = False
    if row["method"] != default.method:
        entry["method"] = row["method"]
    if row["headers"]:
        entry["headers"] = {key: _written_header(value, key, lost) for key, value in row["headers"].items()}
    if row["body"] is not None:
        entry["body"] = _escaped(row["body"])
    entry["interval"] = written_ms(row["interval"] * UNIT_MS[row["unit"]])
    client: dict[str, Any] = {"timeout": written_ms(row["timeout_ms"])}
    if not row["follow_redirects"]:
        client["ignore-redirect"] = True
    if not row["verify_tls"]:
        client["insecure"] = True
    if row["proxy"] is not None:
        client["proxy-url"] = _escaped(row["proxy"])
    if row["client_cert_file"] is not None:
        client["tls"] = {"certificate-file": _escaped(row["client_cert_file"])}
        client["tls"]["private-key-file"] = _escaped(row["client_key_file"] or row["client_cert_file"])
    entry["client"] = client
    entry["conditions"] = [_escaped(each) for each in _written_conditions(row, lost)]
    if (row["down_after"], row["up_after"]) != (1, 1):
        lost.append(("down_after", "an alert of the type custom holds the thresholds; set alerting up for it"))
        entry["alerts"] = [
            {"type": "custom", "failure-threshold": row["down_after"], "success-threshold": row["up_after"]}
        ]
    return entry, lost


def _escaped(text: str) -> str:
    return text.replace("$", "$$")


def _written_header(value: str, name: str, lost: list[tuple[str, str]]) -> str:
    """References by variable are Gatus' variables; others are not known to it."""
    if "${file:" in value or "${sealed:" in value:
        lost.append(("headers", f"{name} refers to a secret that Gatus can't find"))
    made, at = "", 0
    for match in re.finditer(r"\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)\}", value):
        made += _escaped(value[at : match.start()]) + ("$${" if match[1] is None else match[0])
        at = match.end()
    return made + _escaped(value[at:])


def _written_conditions(row: Mapping[str, Any], lost: list[tuple[str, str]]) -> list[str]:
    made = _status_conditions(statuses_of(row["expected_status"]), lost)
    for assertion in row["assertions"] or ():
        condition = _asserted(assertion)
        if condition is None:
            lost.append(("assertions", f"no condition says {shown(orjson.dumps(assertion).decode())}"))
        else:
            made.append(condition)
    return made or ["[CONNECTED] == true"]


def _status_conditions(statuses: frozenset[int], lost: list[tuple[str, str]]) -> list[str]:
    ordered = sorted(statuses)
    if len(ordered) == 1:
        return [f"[STATUS] == {ordered[0]}"]
    if not ordered:
        lost.append(("expected_status", "no status that Gatus could meet"))
        return []
    if ordered[-1] - ordered[0] == len(ordered) - 1:
        return [f"[STATUS] >= {ordered[0]}", f"[STATUS] <= {ordered[-1]}"]
    return [f"[STATUS] == any({', '.join(str(each) for each in ordered)})"]


def _asserted(assertion: Mapping[str, Any]) -> str | None:
    kind = assertion["type"]
    if kind in {"response_time_below", "certificate_days"}:
        return _ASSERTED[kind](assertion)
    if kind == "body_contains":
        return _ASSERTED[kind](assertion) if _PLAIN.fullmatch(assertion["text"]) else None
    if kind == "json_path" and (path := _PATH.fullmatch(assertion["path"])):
        value, op = assertion.get("value"), assertion.get("op", "exists")
        place = f"[BODY]{path[1]}"
        if op in {"exists", "absent"}:
            return f"has({place}) == {'true' if op == 'exists' else 'false'}"
        if op in {"==", "<", "<=", ">", ">="} and isinstance(value, bool | int):
            return f"{place} {op} {str(value).lower()}"
        if op == "==" and isinstance(value, str) and _PLAIN.fullmatch(value) and value == value.strip():
            return f"{place} == {value}" if not re.search(r" (==|!=|[<>]=?) ", value) else None
    if kind == "header" and assertion["op"] == "==" and _PLAIN.fullmatch(assertion["value"]):
        return f"[HEADER].{assertion['name']} == {assertion['value']}"
    return None
