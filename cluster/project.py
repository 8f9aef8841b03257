"""A project as workers need it, and the rules a project's fields must obey.

``ProjectSpec`` travels from the coordinator to workers.  ``ProjectFields`` is what people write (admin ``add``, the
command line, files); ``validate`` turns it into the canonical form that goes into table ``projects``, or raises
:class:`InvalidInputError` naming the field.  The table's CHECK constraints hold the same rules for rows written
directly in SQL, as far as SQL can say them.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal
from urllib.parse import quote, urlsplit

import msgspec
import orjson

from cluster.assertions import canonical_assertions, validate_assertions
from cluster.errors import ClusterError, InvalidInputError
from cluster.http_options import (
    OPTION_NAMES,
    OPTIONS_SQL,
    HttpOptions,
    expect_option_type,
    options_from_json,
    validate_options,
)
from cluster.masking import kind_of, masked_url
from cluster.secret_references import expect_references
from cluster.ticks import UNIT_MS, milliseconds_of

Unit = Literal["seconds", "minutes", "hours"]

ID_MAX = 1 << 62  # that people may choose; ids given out by the table follow the largest one, so it has a limit above
NAME_CHARS_MAX = 200
URL_CHARS_MAX = 4_096
BODY_CHARS_MAX = 65_536
HEADERS_MAX = 100
HEADERS_CHARS_MAX = 65_536  # all names and values of a project
INTERVAL_S_MAX = 365 * 86_400
TIMEOUT_MS_MAX = 600_000
HELD_MS = 1_000  # beyond its time-out, that an attempt may be held until it is known whose fault its failure is
RUN_MAX = 1_000  # of down_after and up_after
SHARED_MAX = 4_096  # values that projects have in common
SHARED_CHARS_MAX = 256  # of a header's value, to be looked for among them
SWITCHING_PROTOCOLS = "101"  # the one informational status that ends an exchange

_METHOD = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,32}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
_CONNECTION_WORDS = frozenset({"close", "keep-alive", "upgrade"})
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_CONTROL_BUT_TAB = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_URL_FORBIDDEN = re.compile(r"[\x00-\x20\x7f-\xa0\u2028\u2029\u3000]")
_HOST = re.compile(r"(?=.{1,254}$)(?!-)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*(?<!-)\.?")
_IPV6 = re.compile(r"[0-9A-Fa-f:.]{2,45}(%25[A-Za-z0-9._~-]{1,16})?")
_IPV6_GROUP = re.compile(r"[0-9A-Fa-f]{1,4}")
_STATUS_PART = re.compile(r"([1-5])xx|([1-5][0-9]{2})(?:-([1-5][0-9]{2}))?")
_LEADING_NAME = re.compile(r"[a-z_]+")
_INTERVAL = re.compile(r"([0-9]{1,9})\s*(s|m|h|d|seconds?|minutes?|hours?|days?)?")
_INTERVAL_UNITS: dict[str, tuple[int, Unit]] = {
    "s": (1, "seconds"),
    "m": (1, "minutes"),
    "h": (1, "hours"),
    "d": (24, "hours"),
}


class ProjectSpec(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Fields are only appended.  ``since_ms``: when the project was enabled, or its interval changed.

    ``options`` is None for a project that sets none.
    """

    id: int
    url: str
    interval_ms: int
    since_ms: int
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()
    body: str | None = None
    expected_status: str = "200"
    timeout_ms: int = 30_000
    follow_redirects: bool = True
    assertions: bytes | None = None  # as cluster.assertions encodes them
    options: HttpOptions | None = None


@lru_cache(maxsize=SHARED_MAX)
def _shared(value: Any) -> Any:
    """One object for all that are equal to it.  For texts, integers, options: 1, 1.0 and True would become one, too."""
    return value


def compact(spec: ProjectSpec) -> ProjectSpec:
    """The same spec for who keeps many of them: what most have in common is there once.  A decoder makes each anew.

    ``id``, ``url``, ``since_ms`` and ``body`` are a project's own; a header that is long is so as well, as a rule.
    """
    return ProjectSpec(
        spec.id,
        spec.url,
        _shared(spec.interval_ms),
        spec.since_ms,
        _shared(spec.method),
        spec.headers and tuple(_shared(pair) if len(pair[1]) <= SHARED_CHARS_MAX else pair for pair in spec.headers),
        spec.body,
        _shared(spec.expected_status),
        _shared(spec.timeout_ms),
        spec.follow_redirects,
        _shared(spec.assertions) if spec.assertions and len(spec.assertions) <= SHARED_CHARS_MAX else spec.assertions,
        spec.options and _shared(spec.options),
    )


def longest_poll_ms(spec: ProjectSpec) -> int:
    """How long a poll may take by its time-outs, its retries included."""
    options = spec.options
    if options is None or not options.retries:
        return spec.timeout_ms
    return (options.retries + 1) * spec.timeout_ms + options.retries * (options.retry_delay_ms + HELD_MS)


encode_spec = msgspec.msgpack.Encoder().encode
decode_spec = msgspec.msgpack.Decoder(ProjectSpec).decode

# The columns `spec_from_row` reads, for SELECT lists; with `since` of the open span, and `options` by OPTIONS_SQL.
SPEC_COLUMNS = (
    "id",
    "url",
    "method",
    "headers",
    "body",
    "expected_status",
    "interval",
    "unit",
    "timeout_ms",
    "follow_redirects",
    "assertions",
)


# What ``spec_from_row`` reads but ``since``, for SELECT lists that name the table p.
SPEC_SELECT = ", ".join((*(f"p.{column}" for column in SPEC_COLUMNS), f"{OPTIONS_SQL} AS options"))


class ProjectFields(HttpOptions, array_like=False, frozen=True, kw_only=True):
    """The columns of table ``projects`` that people write."""

    url: str
    name: str = ""
    method: str = "GET"
    headers: dict[str, str] | None = None
    body: str | None = None
    expected_status: str = "200"
    interval: int = 60
    unit: Unit = "seconds"
    timeout_ms: int = 30_000
    follow_redirects: bool = True
    enabled: bool = True
    down_after: int = 1
    up_after: int = 1
    assertions: list[dict[str, Any]] | None = None

    @property
    def interval_ms(self) -> int:
        return self.interval * UNIT_MS[self.unit]


FIELD_NAMES = tuple(sorted(ProjectFields.__struct_fields__, key=OPTION_NAMES.__contains__))  # the options last
JSON_FIELDS = ("headers", "assertions")  # of type jsonb in the table
_TEXT_FIELDS = frozenset({"url", "name", "method", "expected_status", "unit"})
_PRIVATE_FIELDS = frozenset({"headers", "body"})  # a wrong value is not repeated: it may be a secret
_FLAG_FIELDS = frozenset({"follow_redirects", "enabled"})


def field_of(error: ClusterError) -> str | None:
    """Which field an error that was raised here begins with: the one it is about.  None when that is no field."""
    found = _LEADING_NAME.match(str(error))
    return found[0] if found is not None and found[0] in FIELD_NAMES else None


def project_from_map(written: Mapping[Any, Any]) -> ProjectFields:
    """Validated fields out of a decoded JSON or msgpack map; ``interval`` may be a number or text such as '30s'."""
    for name in written:
        if name not in FIELD_NAMES:
            raise InvalidInputError(f"project: unknown field {_shown(name)}; known are {', '.join(FIELD_NAMES)}")
    if "url" not in written:
        raise InvalidInputError("project: the field url is required")
    values: dict[str, Any] = {}
    for name, value in written.items():
        if name in _TEXT_FIELDS:
            _expect(name, value, isinstance(value, str), "text")
        elif name in _FLAG_FIELDS:
            _expect(name, value, isinstance(value, bool), "true or false")
        elif name in OPTION_NAMES:
            expect_option_type(name, value)
        elif name == "body":
            _expect(name, value, value is None or isinstance(value, str), "text or null")
        elif name == "headers":
            _expect(name, value, value is None or isinstance(value, Mapping), "a map of names to values, or null")
        elif name == "assertions":
            _expect(name, value, value is None or isinstance(value, list), "a list of maps, or null")
        elif name == "interval" and isinstance(value, str):
            if "unit" in written:
                raise InvalidInputError(f"interval: {_shown(value)} has its own unit, so leave out unit")
            values["interval"], values["unit"] = parse_interval(value)
            continue
        else:
            _expect(name, value, isinstance(value, int) and not isinstance(value, bool), "an integer")
        values[name] = value
    return validate(ProjectFields(**values))


def validate(fields: ProjectFields) -> ProjectFields:
    """The canonical form of the fields; raises InvalidInputError naming the first one that is wrong."""
    if len(fields.name) > NAME_CHARS_MAX or _CONTROL.search(fields.name):
        raise InvalidInputError(f"name: must be at most {NAME_CHARS_MAX} characters without control characters")
    if fields.unit not in UNIT_MS:
        raise InvalidInputError(f"unit: must be seconds, minutes or hours, not {_shown(fields.unit)}")
    if fields.interval < 1 or fields.interval_ms > INTERVAL_S_MAX * 1_000:
        raise InvalidInputError(f"interval: must be from 1 second to 365 days, not {fields.interval} {fields.unit}")
    if not 1 <= fields.timeout_ms <= TIMEOUT_MS_MAX:
        raise InvalidInputError(f"timeout_ms: must be from 1 to {TIMEOUT_MS_MAX}, not {fields.timeout_ms}")
    for name in ("down_after", "up_after"):
        if not 1 <= getattr(fields, name) <= RUN_MAX:
            raise InvalidInputError(f"{name}: must be from 1 to {RUN_MAX} polls in a row, not {getattr(fields, name)}")
    if fields.body is not None and (len(fields.body) > BODY_CHARS_MAX or "\x00" in fields.body):
        raise InvalidInputError(f"body: must be at most {BODY_CHARS_MAX} characters without NUL")
    for name in ("name", "body"):
        _expect_unicode(name, getattr(fields, name))
    canonical = msgspec.structs.replace(
        fields,
        url=_valid_url(fields.url),
        method=_valid_method(fields.method),
        headers=_valid_headers(fields.headers, fields.body),
        expected_status=_valid_expected_status(fields.expected_status),
        assertions=_valid_assertions(fields.assertions),
    )
    validate_options(canonical, canonical.url, canonical.headers)
    return canonical


def parse_interval(text: str) -> tuple[int, Unit]:
    """'30s', '5m', '1h', '1d', '30 seconds' or a number of seconds, as the columns ``interval`` and ``unit``."""
    found = _INTERVAL.fullmatch(text.strip().lower())
    if not found:
        raise InvalidInputError(f"interval: must be a number with s, m, h or d, such as 30s or 5m, not {_shown(text)}")
    factor, unit = _INTERVAL_UNITS[(found[2] or "s")[0]]
    return int(found[1]) * factor, unit


def parse_header(line: str) -> tuple[str, str]:
    """A header as written on a command line: 'Name: value'."""
    name, colon, value = line.partition(":")
    if not colon or not name.strip():
        raise InvalidInputError(f"header: must be written 'Name: value', not {_shown(line)}")
    return name.strip(), value.strip()


def spec_from_row(row: Any) -> ProjectSpec:
    """A spec from a row of ``projects`` with ``SPEC_COLUMNS``, ``options``, ``since``: CHECKs made sure of the rest.

    ``headers`` is JSON text or a decoded map.  Raises InvalidInputError when headers aren't texts, or assertions none,
    which the table can't refuse.
    """
    headers = row["headers"]
    assertions = row["assertions"]
    since = row["since"]
    return ProjectSpec(
        row["id"],
        row["url"],
        row["interval"] * UNIT_MS[row["unit"]],
        0 if since is None else milliseconds_of(since),
        row["method"],
        () if headers is None else _header_pairs(headers),
        row["body"],
        row["expected_status"],
        row["timeout_ms"],
        row["follow_redirects"],
        None if assertions is None else canonical_assertions(assertions),
        None if row["options"] is None else options_from_json(row["options"]),
    )


def _header_pairs(headers: str | Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    decoded = orjson.loads(headers) if isinstance(headers, str) else headers
    if decoded is None:
        return ()
    for name, value in decoded.items():
        if not isinstance(value, str):
            raise InvalidInputError(f"headers: the value of {_shown(name)} must be text, not {kind_of(value)}")
    return tuple(decoded.items())


def _valid_url(url: str) -> str:
    if not url or len(url) > URL_CHARS_MAX:
        raise InvalidInputError(f"url: must be 1 to {URL_CHARS_MAX} characters, not {len(url)}")
    if _URL_FORBIDDEN.search(url):
        raise InvalidInputError(f"url: must not contain spaces or control characters: {_shown(masked_url(url))}")
    _expect_unicode("url", url)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidInputError(
            f"url: {_shown(masked_url(url))} is not a valid URL: its host or port can't be one"
        ) from error
    if parts.scheme not in {"http", "https"} or not url[len(parts.scheme) :].startswith("://"):
        raise InvalidInputError(f"url: must begin with http:// or https://, not {_shown(masked_url(url))}")
    if not host:
        raise InvalidInputError(f"url: {_shown(masked_url(url))} has no host")
    if port == 0:
        raise InvalidInputError(f"url: the port must be from 1 to 65535 in {_shown(masked_url(url))}")
    canonical = _ascii_url(url, parts.netloc, host)
    if len(canonical) > URL_CHARS_MAX:
        raise InvalidInputError(f"url: is longer than {URL_CHARS_MAX} characters when percent-encoded")
    return canonical


def _ascii_url(url: str, netloc: str, host: str) -> str:
    """The URL with a host in ASCII and what isn't ASCII percent-encoded; everything else stays as written."""
    place = netloc.rpartition("@")[2]
    if place.startswith("["):
        if not _IPV6.fullmatch(host) or not _is_ipv6(host.partition("%")[0]):
            raise InvalidInputError(f"url: {_shown(host)} is not an IPv6 address")
        behind = place.partition("]")[2]
        if behind and not behind.startswith(":"):
            raise InvalidInputError(f"url: {_shown(behind)} is not a port, behind the address {_shown(host)}")
    else:
        try:
            encoded = host if host.isascii() else host.encode("idna").decode("ascii")
        except UnicodeError as error:
            raise InvalidInputError(f"url: {_shown(host)} is not a host name: {error}") from error
        if not _HOST.fullmatch(encoded) or "[" in place or "]" in place:
            raise InvalidInputError(f"url: {_shown(host)} is not a host name")
        if encoded.replace(".", "").isdigit() and not _is_ipv4(encoded):
            raise InvalidInputError(f"url: {_shown(host)} is not an IPv4 address")
        if host.isascii():
            return _ascii_text(url)
        start = url.index("://") + 3
        user, at, _ = netloc.rpartition("@")
        _, colon, port = place.partition(":")
        url = url[:start] + user + at + encoded + colon + port + url[start + len(netloc) :]
    return _ascii_text(url)


def _ascii_text(url: str) -> str:
    return url if url.isascii() else "".join(c if c.isascii() else quote(c, safe="") for c in url)


def _is_ipv4(host: str) -> bool:
    """Numbers with dots: also in the short forms that name lookup takes, such as 127.1."""
    *first, last = (int(part) if part.isdigit() else -1 for part in host.split("."))
    return len(first) <= 3 and all(0 <= part <= 255 for part in first) and 0 <= last < 256 ** (4 - len(first))


def _is_ipv6(address: str) -> bool:
    """Eight groups, one run of zeros left out perhaps, the last two perhaps as an IPv4 address (RFC 4291, 2.2)."""
    before, gap, after = address.partition("::")
    groups = [group for part in (before, after) if part for group in part.split(":")]
    size = len(groups)
    if groups and "." in groups[-1]:
        last = groups.pop()
        if not address.endswith(last) or last.count(".") != 3 or not _is_ipv4(last):
            return False
        size += 1
    return all(_IPV6_GROUP.fullmatch(group) for group in groups) and (size <= 7 if gap else size == 8)


def _valid_method(method: str) -> str:
    if not _METHOD.fullmatch(method):
        raise InvalidInputError(f"method: must be a token of at most 32 characters such as GET, not {_shown(method)}")
    if method.upper() == "CONNECT":
        raise InvalidInputError("method: CONNECT asks for a tunnel, and there is nothing in one to poll")
    return method.upper() if method.upper() in _METHODS else method


def _valid_headers(headers: Mapping[Any, Any] | None, body: str | None) -> dict[str, str] | None:
    if not headers:
        return None
    if len(headers) > HEADERS_MAX:
        raise InvalidInputError(f"headers: must be at most {HEADERS_MAX}, not {len(headers)}")
    seen: set[str] = set()
    size = 0
    for name, value in headers.items():
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
            raise InvalidInputError(f"headers: {_shown(name)} is not a header name")
        if not isinstance(value, str):
            raise InvalidInputError(f"headers: the value of {name!r} must be text, not {kind_of(value)}")
        if _CONTROL_BUT_TAB.search(value):
            raise InvalidInputError(f"headers: the value of {name!r} must not contain line ends or control characters")
        if name.lower() in seen:
            raise InvalidInputError(f"headers: {name!r} is given twice")
        _expect_unicode("headers", value)
        expect_references(f"headers: the value of {name!r}", value)
        _expect_framing(name, value, body)
        seen.add(name.lower())
        size += len(name) + len(value)
    if size > HEADERS_CHARS_MAX:
        raise InvalidInputError(f"headers: must be at most {HEADERS_CHARS_MAX} characters in all, not {size}")
    return dict(headers)


def _expect_framing(name: str, value: str, body: str | None) -> None:
    """Where the request ends is for the prober to say, in the one way that every server understands."""
    match name.lower():
        case "transfer-encoding":
            raise InvalidInputError(f"headers: {name} can't be given: a body is sent with its length")
        case "content-length":
            size = len((body or "").encode())
            if value.strip(" \t") != str(size):
                raise InvalidInputError(
                    f"headers: {name} is {_shown(value)} and the body has {size} bytes; leave it out, it is added"
                )
        case "connection":
            words = {word.strip().lower() for word in value.split(",")}
            if not words <= _CONNECTION_WORDS:
                raise InvalidInputError(
                    f"headers: {name} must be {', '.join(sorted(_CONNECTION_WORDS))}, not {_shown(value)}"
                )


def _valid_expected_status(written: str) -> str:
    parts = []
    for part in written.lower().split(","):
        compact = re.sub(r"\s*-\s*", "-", part.strip(" \t"))
        found = _STATUS_PART.fullmatch(compact)
        if not found or (found[3] and found[3] < found[2]):
            raise InvalidInputError(
                f"expected_status: must be like 200, 2xx or 200-299,301 (statuses 200 to 599), not {_shown(written)}"
            )
        if compact.startswith("1") and compact != SWITCHING_PROTOCOLS:
            raise InvalidInputError(
                f"expected_status: {compact} can't be met: informational answers are followed by another one "
                f"({SWITCHING_PROTOCOLS} aside)"
            )
        parts.append(compact)
    return ",".join(parts)


def _valid_assertions(written: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    return msgspec.to_builtins(validate_assertions(written)) if written else None


def _expect(name: str, value: object, holds: bool, what: str) -> None:
    if not holds:
        is_private = name in _PRIVATE_FIELDS or isinstance(value, Mapping | list | tuple)
        raise InvalidInputError(f"{name}: must be {what}, not {kind_of(value) if is_private else _shown(value)}")


def _expect_unicode(name: str, value: str | None) -> None:
    try:
        (value or "").encode()
    except UnicodeEncodeError:
        raise InvalidInputError(f"{name}: is not valid Unicode") from None


def _shown(value: object) -> str:
    return ascii(value if not isinstance(value, str) else value[:100])[:120]
