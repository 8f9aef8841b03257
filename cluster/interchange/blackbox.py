"""``blackbox.yml`` of blackbox_exporter: its modules, as what projects have in common.  Pure.

A module with the prober ``http`` becomes fields of a project; others can't be polled.  Regular expressions are RE2's
in both.  There is no assertion of what must not be found, so ``fail_if_..._matches`` is not mapped.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from cluster.assertions import validate_assertions
from cluster.errors import InvalidInputError
from cluster.interchange.go_durations import duration_ms
from cluster.interchange.model import EntryBook, FieldNote, literal_value, shown
from cluster.interchange.status_sets import expect_statuses, statuses_of
from cluster.interchange.yaml_text import read_yaml

MAPPED = {
    "prober": "`http`; targets of others are skipped",
    "timeout": "`timeout_ms`, if shorter than the `scrape_timeout`",
    "http.valid_status_codes": "`expected_status`; `2xx` where it is left out",
    "http.method": "`method`",
    "http.headers": "`headers`; `${` becomes `$${`, which is no reference",
    "http.body": "`body`",
    "http.follow_redirects": "`follow_redirects`",
    "http.no_follow_redirects": "`follow_redirects`, as it was called before",
    "http.fail_if_not_ssl": "holds for https URLs by themselves, a redirect to http aside; not mapped for others",
    "http.fail_if_body_not_matches_regexp": "`body_matches`, one each",
    "http.fail_if_header_not_matches": "`header` with `matches`; with `allow_missing` not mapped",
    "http.tls_config.insecure_skip_verify": "`verify_tls`",
    "http.tls_config.ca_file": "`ca_file`; the file must be on the workers' host, by an absolute path",
    "http.tls_config.cert_file": "`client_cert_file`, likewise",
    "http.tls_config.key_file": "`client_key_file`, likewise",
    "http.tls_config.server_name": "`server_name`",
    "http.basic_auth.username": "`basic_auth`",
    "http.basic_auth.password": "`basic_auth`",
    "http.basic_auth.password_file": "`basic_auth` with `${file:NAME}`: the file has to be in `--secrets-dir`",
    "http.bearer_token": "`bearer_token`",
    "http.bearer_token_file": "`bearer_token` with `${file:NAME}`: the file has to be in `--secrets-dir`",
    "http.authorization.type": "`bearer_token` for Bearer, else the header `Authorization`",
    "http.authorization.credentials": "`bearer_token`, or the header `Authorization`",
    "http.authorization.credentials_file": "likewise, with `${file:NAME}`: the file has to be in `--secrets-dir`",
    "http.proxy_url": "`proxy`; only `http://`",
    "http.preferred_ip_protocol": "`ip_version`, with `ip_protocol_fallback: false`; else either is taken",
    "http.ip_protocol_fallback": "see `preferred_ip_protocol`",
    "http.body_size_limit": "`body_limit_bytes`",
}
NOT_MAPPED = {
    "tcp": "ringpoll polls HTTP only",
    "dns": "ringpoll polls HTTP only",
    "icmp": "ringpoll polls HTTP only",
    "grpc": "ringpoll polls HTTP only",
    "http.valid_http_versions": "the version of an answer is not asserted",
    "http.fail_if_ssl": "that an answer came without TLS is not asserted",
    "http.fail_if_body_matches_regexp": "there is no assertion of what a body must not match",
    "http.fail_if_header_matches": "there is no assertion of what a header must not match",
    "http.fail_if_body_json_matches_cel": "assertions on JSON are JSON paths",
    "http.fail_if_body_json_not_matches_cel": "assertions on JSON are JSON paths",
    "http.compression": "the encoding of an answer is not asserted",
    "http.body_file": "a body is a part of the project",
    "http.oauth2": "ringpoll gets no tokens; a bearer_token can be given",
    "http.no_proxy": "a proxy is used for all of a project's requests",
    "http.proxy_from_environment": "a proxy is named in the project",
    "http.proxy_connect_header": "a proxy gets only user and password",
    "http.skip_resolve_phase_with_proxy": "with a proxy, names are looked up by it",
    "http.use_proxy_dns": "with a proxy, names are looked up by it",
    "http.enable_http2": "ringpoll speaks HTTP/1.1",
    "http.enable_http3": "ringpoll speaks HTTP/1.1",
    "http.use_http3": "ringpoll speaks HTTP/1.1",
    "http.tls_config.min_version": "versions of TLS are those of the workers' host",
    "http.tls_config.max_version": "versions of TLS are those of the workers' host",
}
_FLAGS = {"true": True, "false": False}
_SIZE = re.compile(r"\s*(\d{1,12})\s*([KMGT]?)(i?)B?\s*", re.IGNORECASE)
_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
DEFAULT_STATUSES = "2xx"


class BlackboxModule(msgspec.Struct, frozen=True):
    """``project``: fields that do not depend on the target.  ``unusable``: why targets can't be polled by it."""

    name: str
    project: dict[str, Any]
    timeout_ms: float | None = None
    wants_tls: bool = False
    notes: tuple[FieldNote, ...] = ()
    mapped: tuple[str, ...] = ()
    unusable: str | None = None


def read_blackbox(text: str, where: str) -> dict[str, BlackboxModule]:
    document = read_yaml(text, where, texts=True)
    modules = document.get("modules") if isinstance(document, dict) else None
    if not isinstance(modules, dict):
        raise InvalidInputError(f"{where}: has no map of modules")
    return {name: _module(name, settings, where) for name, settings in modules.items()}


def _module(name: str, settings: Any, where: str) -> BlackboxModule:
    place = f"{where}: module {shown(name)}"
    if not isinstance(settings, dict):
        raise InvalidInputError(f"{place}: must be a map")
    prober = settings.get("prober")
    if prober != "http":
        return BlackboxModule(name, {}, unusable=f"module {shown(name)} probes by {prober}: ringpoll polls HTTP only")
    book = EntryBook(settings, place)
    book.take("prober")
    try:
        timeout = book.take("timeout")
        timeout_ms = None if timeout is None else duration_ms(timeout, days=True)
        project: dict[str, Any] = {}
        wants_tls = False
        http = book.take_map("http")
        if http is not None:
            wants_tls = _http(http, project)
            http.leave(NOT_MAPPED)
        else:
            project["expected_status"] = DEFAULT_STATUSES
        made = book.project(project, NOT_MAPPED)
    except InvalidInputError as error:
        raise InvalidInputError(f"{place}: {error}") from error
    return BlackboxModule(name, project, timeout_ms, wants_tls, made.notes, made.mapped)


def _http(http: EntryBook, project: dict[str, Any]) -> bool:
    if method := _text(http, "http.method"):
        project["method"] = method
    headers = http.take("http.headers")
    if headers is not None and not isinstance(headers, dict):
        raise InvalidInputError("http.headers: must be a map")
    if any(isinstance(value, dict | list) for value in (headers or {}).values()):
        raise InvalidInputError("http.headers: each value must be text")
    if headers:
        project["headers"] = {name: literal_value(value or "") for name, value in headers.items()}
    if body := _text(http, "http.body"):
        project["body"] = body
    follow = not http.take_flag("http.no_follow_redirects", _FLAGS)
    if not http.take_flag("http.follow_redirects", _FLAGS, default=follow):
        project["follow_redirects"] = False
    _statuses(http, project)
    _assertions(http, project)
    _tls(http, project)
    _authorization(http, project)
    _connection(http, project)
    return http.take_flag("http.fail_if_not_ssl", _FLAGS)


def _text(book: EntryBook, field: str) -> str:
    value = book.take(field)
    if value is not None and not isinstance(value, str):
        raise InvalidInputError(f"{field}: must be text")
    return value or ""


def _list(book: EntryBook, field: str) -> list[Any]:
    value = book.take(field)
    if value is not None and not isinstance(value, list):
        raise InvalidInputError(f"{field}: must be a list")
    return value or []


def _statuses(http: EntryBook, project: dict[str, Any]) -> None:
    codes = _list(http, "http.valid_status_codes")
    if not codes:
        project["expected_status"] = DEFAULT_STATUSES
        return
    wrong = [code for code in codes if not isinstance(code, str) or not re.fullmatch(r"[1-9]\d{2}", code)]
    if wrong:
        raise InvalidInputError(f"http.valid_status_codes: {shown(wrong[0])} is no status")
    asked = frozenset(int(code) for code in codes)
    usable = asked & statuses_of("101,200-599")
    if asked - usable:
        http.lost("http.valid_status_codes", f"{sorted(asked - usable)}: no answer ends with these")
    if not usable:
        raise InvalidInputError("http.valid_status_codes: none of them can end an answer")
    expect_statuses(http, "http.valid_status_codes", project, usable)


def _assertions(http: EntryBook, project: dict[str, Any]) -> None:
    made: list[dict[str, Any]] = []

    def add(field: str, assertion: dict[str, Any]) -> None:
        try:
            validate_assertions([*made, assertion])
        except InvalidInputError as error:
            http.lost(field, str(error))
            return
        made.append(assertion)
        http.mapped(field)

    field = "http.fail_if_body_not_matches_regexp"
    for at, pattern in enumerate(_list(http, field)):
        add(f"{field}[{at}]", {"type": "body_matches", "pattern": f"(?s){pattern}"})
    field = "http.fail_if_header_not_matches"
    for at, match in enumerate(_list(http, field)):
        if not isinstance(match, dict):
            raise InvalidInputError(f"{field}[{at}]: must be a map")
        if _FLAGS.get(str(match.get("allow_missing")).lower(), False):
            http.lost(f"{field}[{at}]", f"that {shown(match.get('header'))} may be missing is not asserted")
        else:
            value = {"op": "matches", "value": match.get("regexp") or ""}
            add(f"{field}[{at}]", {"type": "header", "name": match.get("header") or ""} | value)
    if made:
        project["assertions"] = made


def _tls(http: EntryBook, project: dict[str, Any]) -> None:
    tls = http.take_map("http.tls_config")
    if tls is None:
        return
    place = "http.tls_config"
    if tls.take_flag(f"{place}.insecure_skip_verify", _FLAGS):
        project["verify_tls"] = False
    for field, name in (
        ("ca_file", "ca_file"),
        ("cert_file", "client_cert_file"),
        ("key_file", "client_key_file"),
    ):
        path = _text(tls, f"{place}.{field}")
        if not path:
            continue
        if not path.startswith("/"):
            tls.lost(f"{place}.{field}", f"{name} takes an absolute path, not {shown(path)}")
        elif field == "ca_file" and not project.get("verify_tls", True):
            tls.lost(f"{place}.{field}", "nothing is verified with insecure_skip_verify")
        else:
            project[name] = path
            tls.approximated(f"{place}.{field}", "must be there on the workers' host")
    if "client_key_file" in project and "client_cert_file" not in project:
        del project["client_key_file"]
    if server_name := _text(tls, f"{place}.server_name"):
        project["server_name"] = server_name
    tls.leave(NOT_MAPPED)


def _authorization(http: EntryBook, project: dict[str, Any]) -> None:
    if (basic := http.take_map("http.basic_auth")) is not None:
        place = "http.basic_auth"
        user = literal_value(_text(basic, f"{place}.username"))
        password = literal_value(_text(basic, f"{place}.password"))
        if path := _text(basic, f"{place}.password_file"):
            password = _file_reference(basic, f"{place}.password_file", path)
        project["basic_auth"] = f"{user}:{password}"
        basic.leave(NOT_MAPPED)
    token = literal_value(_text(http, "http.bearer_token"))
    if path := _text(http, "http.bearer_token_file"):
        token = _file_reference(http, "http.bearer_token_file", path)
    kind = "Bearer"
    if (authorization := http.take_map("http.authorization")) is not None:
        place = "http.authorization"
        kind = _text(authorization, f"{place}.type") or kind
        token = literal_value(_text(authorization, f"{place}.credentials"))
        if path := _text(authorization, f"{place}.credentials_file"):
            token = _file_reference(authorization, f"{place}.credentials_file", path)
        authorization.leave(NOT_MAPPED)
    if token and kind.lower() == "bearer":
        project["bearer_token"] = token
    elif token:
        project["headers"] = (project.get("headers") or {}) | {"Authorization": f"{kind} {token}"}


def _file_reference(book: EntryBook, field: str, path: str) -> str:
    name = path.rpartition("/")[2]
    if not _FILE_NAME.fullmatch(name):
        raise InvalidInputError(f"{field}: {shown(name)} is no name that a file of secrets can have")
    book.approximated(field, f"the workers' --secrets-dir must have the file {name}")
    return f"${{file:{name}}}"


def _connection(http: EntryBook, project: dict[str, Any]) -> None:
    proxy = _text(http, "http.proxy_url")
    if proxy.lower().startswith("http://"):
        project["proxy"] = proxy
    elif proxy:
        http.lost("http.proxy_url", "only a proxy with http:// is used; it is polled directly")
    preferred = _text(http, "http.preferred_ip_protocol") or "ip6"
    if not http.take_flag("http.ip_protocol_fallback", _FLAGS, default=True):
        project["ip_version"] = 4 if preferred == "ip4" else 6
    elif preferred == "ip4":
        http.approximated("http.preferred_ip_protocol", "either is taken; ip_version takes one of them only")
    limit = _text(http, "http.body_size_limit")
    if not limit or limit == "0":
        return
    found = _SIZE.fullmatch(limit)
    if found is None:
        raise InvalidInputError(f"http.body_size_limit: must be a size such as 10MB, not {shown(limit)}")
    size = int(found[1]) * 1_024 ** _POWERS[found[2].upper()]
    if size <= 1 << 30:
        project["body_limit_bytes"] = max(1, size)
    else:
        http.lost("http.body_size_limit", "body_limit_bytes is at most 1 GiB")


ModuleOf = Callable[[str], BlackboxModule]


def module_finder(modules: Mapping[str, BlackboxModule] | None) -> ModuleOf:
    """``modules``: None when no ``blackbox.yml`` was given; then the name has to say what is meant."""

    def find(name: str) -> BlackboxModule:
        if modules is not None:
            unknown = f"there is no module {shown(name)} in the file of --blackbox"
            return modules.get(name) or BlackboxModule(name, {}, unusable=unknown)
        if name.startswith("http"):
            return BlackboxModule(name, {"expected_status": DEFAULT_STATUSES})
        return BlackboxModule(name, {}, unusable=f"what module {shown(name)} does, --blackbox blackbox.yml has to say")

    return find
