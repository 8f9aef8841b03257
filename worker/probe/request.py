"""What goes out on the wire for a project, and what a redirect makes of it.  Pure.

Rules:

- The request target is the project's URL as written, byte for byte, from the path to before the fragment; only
  characters outside ASCII are percent-encoded, since they can't be sent.
- One Host: the project's own header if it has one, else the URL's.  The project's headers follow as given, then
  Authorization of its options, User-Agent and Accept unless given, then Content-Length.  Nothing else is added: no
  Content-Type, no Accept-Encoding but ``identity`` when the body is looked at; ``Connection: close`` where a connection
  is for one request only.
- To a proxy the request target is the whole URL, if it is one of http; it is otherwise the same.
- A redirect to another origin (scheme, host, port) takes along only headers that can't carry a secret.

It resolves no names and opens nothing.  What can't be made into a request is ``ValueError`` in words for people.
"""

import functools
import ipaddress
import re
from urllib.parse import quote_from_bytes

import msgspec
from yarl import URL

from cluster import __version__
from cluster.http_options import HttpOptions
from cluster.masking import masked_url
from cluster.project import ProjectSpec
from worker.probe.connection_settings import ConnectionSettings, basic, credentials_of, settings_of
from worker.probe.judging import judge_for

USER_AGENT = f"ringpoll/{__version__}"
REDIRECTS_MAX = 10
ORIGINS_KEPT = 4_096
REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})
DEFAULT_PORTS = {"http": 80, "https": 443}

# Headers that say nothing about who asks; everything else stays with the project's own origin.
TRAVELLING_HEADERS = frozenset(
    {
        "accept",
        "accept-charset",
        "accept-encoding",
        "accept-language",
        "cache-control",
        "content-encoding",
        "content-language",
        "content-type",
        "dnt",
        "pragma",
        "user-agent",
    }
)
_BODY_HEADERS = frozenset(
    {"content-encoding", "content-language", "content-length", "content-location", "content-type"}
)
_KNOWN_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
_METHODS_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})

_URL = re.compile(r"(https?)://([^/?#]*)([^#]*)", re.IGNORECASE)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_UNSENDABLE = re.compile(r"[\x00-\x20\x7f]")
_UNSENDABLE_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_HOST_NAME = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=-]+")
_ASCII_PRINTABLE = bytes(range(0x21, 0x7F))


class ForeignSchemeError(ValueError):
    """A URL of a scheme that is not HTTP's."""


class Origin(msgspec.Struct, frozen=True, cache_hash=True):
    """Where a connection leads, and what it is: the key under which connections are kept."""

    scheme: str
    host: str  # lower case, without brackets
    port: int
    settings: ConnectionSettings | None = None  # None: an ordinary one

    def __str__(self) -> str:
        if self.settings is not None and self.settings.proxy is not None:
            return f"{self.place} by proxy {self.settings.proxy}"
        return self.place

    @property
    def place(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@functools.lru_cache(maxsize=ORIGINS_KEPT)
def origin_of(scheme: str, host: str, port: int, settings: ConnectionSettings | None = None) -> Origin:
    """One object for all that lead there: what is looked up by it is found at first sight, and it is kept once."""
    return Origin(scheme, host, port, settings)


class Target(msgspec.Struct, frozen=True):
    origin: Origin  # without settings
    authority: str  # for Host: no user, no default port
    request_target: str
    userinfo: str | None


class HttpRequest(msgspec.Struct, frozen=True):
    """One request of a poll: the bytes to send, and what is needed to follow its redirect."""

    method: str
    target: Target
    origin: Origin  # of the target, with the settings of the connection
    content_dropped: bool  # a redirect made it a GET: the project's body stays behind for good
    wire: bytes


def parse_target(url: str) -> Target:
    parts = _URL.match(url)
    if parts is None:
        raise ValueError(f"not an http:// or https:// URL: {masked_url(url)!r}")
    scheme = parts[1].lower()
    userinfo, _, address = parts[2].rpartition("@")
    host, port = _split_port(address, url)
    if ":" in host:
        authority = f"[{host.partition('%')[0]}]"
    else:
        host = _ascii_host(host, url)
        authority = host
    if port is None or port == DEFAULT_PORTS[scheme]:
        port = DEFAULT_PORTS[scheme]
    else:
        authority = f"{authority}:{port}"
    rest = parts[3]
    if _UNSENDABLE.search(rest):
        raise ValueError(f"a space or control character in the URL {masked_url(url)!r}")
    if not rest.isascii():
        rest = quote_from_bytes(rest.encode("utf-8", "surrogateescape"), safe=_ASCII_PRINTABLE)
    return Target(
        origin=origin_of(scheme, host.lower(), port),
        authority=authority,
        request_target=rest if rest.startswith("/") else f"/{rest}",
        userinfo=userinfo or None,
    )


def _split_port(address: str, url: str) -> tuple[str, int | None]:
    if address.startswith("["):
        literal, bracket, tail = address[1:].partition("]")
        host = literal.replace("%25", "%", 1)
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ValueError(f"no valid IPv6 address between the brackets of the URL {masked_url(url)!r}") from None
        if not bracket or (tail and not tail.startswith(":")):
            raise ValueError(f"no valid host in the URL {masked_url(url)!r}")
        port = tail[1:]
    else:
        host, _, port = address.partition(":")
    if not host:
        raise ValueError(f"no host in the URL {masked_url(url)!r}")
    if not port:
        return host, None
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65_536):
        raise ValueError(f"no valid port in the URL {masked_url(url)!r}")
    return host, int(port)


def _ascii_host(host: str, url: str) -> str:
    if not host.isascii():
        try:
            host = URL.build(scheme="http", host=host).raw_host or ""
        except ValueError:
            host = ""
    if not _HOST_NAME.fullmatch(host) or len(host) > 255 or host.startswith(".") or ".." in host:
        raise ValueError(f"no valid host name in the URL {masked_url(url)!r}")
    return host


def resolve_location(base: Target, location: str) -> Target:
    """Where a Location header leads from ``base`` (RFC 3986 section 5; the fragment plays no part)."""
    text = location.strip(" \t").replace(" ", "%20")
    if _UNSENDABLE.search(text):
        raise ValueError(f"control characters in the redirect target {masked_url(text)!r}")
    if (scheme := _SCHEME.match(text)) is not None:
        if scheme[0][:-1].lower() not in DEFAULT_PORTS:
            raise ForeignSchemeError(f"not an http:// or https:// URL: {masked_url(text)!r}")
        absolute = text
    elif text.startswith("//"):
        absolute = f"{base.origin.scheme}:{text}"
    else:
        text = text.partition("#")[0]
        path, mark, query = base.request_target.partition("?")
        if text.startswith("?"):
            mark, query = "?", text[1:]
        elif text:
            reference, mark, query = text.partition("?")
            path = reference if reference.startswith("/") else path.rpartition("/")[0] + "/" + reference
        absolute = f"{base.origin.scheme}://{base.authority}{_without_dots(path)}{mark}{query}"
        return parse_target(absolute)
    target = parse_target(absolute)
    path, mark, query = target.request_target.partition("?")
    return msgspec.structs.replace(target, request_target=f"{_without_dots(path)}{mark}{query}")


def _without_dots(path: str) -> str:
    if "/." not in path:
        return path
    kept: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        if segment == "..":
            if kept:
                kept.pop()
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in {".", ".."}:
        kept.append("")
    return "/" + "/".join(kept)


def looks_at_body(spec: ProjectSpec) -> bool:
    """Whether a body has to be kept, and is wanted as it is."""
    return spec.assertions is not None and judge_for(spec.assertions).needs_body


def redirected_method(status: int, method: str) -> str:
    if (status == 303 and method != "HEAD") or (status in {301, 302} and method == "POST"):
        return "GET"
    return method


def first_request(spec: ProjectSpec) -> HttpRequest:
    """The request a project's poll begins with."""
    if not _TOKEN.fullmatch(spec.method):
        raise ValueError(f"method {spec.method!r} is not a word HTTP can send")
    method = spec.method.upper() if spec.method.upper() in _KNOWN_METHODS else spec.method
    if method == "CONNECT":
        raise ValueError("method CONNECT asks for a tunnel, and there is nothing in one to poll")
    for name, value in spec.headers:
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"header name {name!r} is not one HTTP can send")
        if _UNSENDABLE_VALUE.search(value):
            raise ValueError(f"header {name} has a line break or control character in its value")
    names = [name.lower() for name, _ in spec.headers]
    if names.count("host") > 1:
        raise ValueError("there is more than one Host header")
    if "transfer-encoding" in names:
        raise ValueError("header Transfer-Encoding can't be set: a body is sent with its length")
    body = (spec.body or "").encode("utf-8", "surrogateescape")
    declared = [value.strip(" \t") for name, value in spec.headers if name.lower() == "content-length"]
    if declared and declared != [str(len(body))]:
        raise ValueError(f"header Content-Length says {', '.join(declared)}, and the body has {len(body)} bytes")
    target = parse_target(spec.url)
    return _request(spec, method, target, spec.headers, body, target.userinfo, at_home=True)


def redirected_request(
    spec: ProjectSpec, own: Target, previous: HttpRequest, status: int, location: str
) -> HttpRequest:
    """The request that follows a redirect; ``own`` is the target of the project's URL."""
    target = resolve_location(previous.target, location)
    method = redirected_method(status, previous.method)
    at_home = target.origin == own.origin
    dropped = previous.content_dropped or method != previous.method
    headers = tuple(
        (name, value)
        for name, value in spec.headers
        if (at_home or name.lower() in TRAVELLING_HEADERS) and not (dropped and name.lower() in _BODY_HEADERS)
    )
    body = b"" if dropped else (spec.body or "").encode("utf-8", "surrogateescape")
    userinfo = target.userinfo or (own.userinfo if at_home else None)
    return _request(spec, method, target, headers, body, userinfo, at_home=at_home, content_dropped=dropped)


def _request(
    spec: ProjectSpec,
    method: str,
    target: Target,
    headers: tuple[tuple[str, str], ...],
    body: bytes,
    userinfo: str | None,
    *,
    at_home: bool,
    content_dropped: bool = False,
) -> HttpRequest:
    given = {name.lower() for name, _ in headers}
    origin = target.origin
    settings = None if spec.options is None else settings_of(spec.options, origin.scheme, at_home=at_home)
    proxy = None if settings is None or origin.scheme == "https" else settings.proxy
    before_path = "" if proxy is None else f"http://{target.authority}"
    lines = [f"{method} {before_path}{target.request_target} HTTP/1.1"]
    if "host" in given:
        lines += [f"{name}: {value}" for name, value in headers if name.lower() == "host"]
        lines += [f"{name}: {value}" for name, value in headers if name.lower() != "host"]
    else:
        lines.append(f"Host: {target.authority}")
        lines += [f"{name}: {value}" for name, value in headers]
    if "authorization" not in given:
        if userinfo is not None:
            user, _, password = userinfo.partition(":")
            lines.append(f"Authorization: {basic(user, password)}")
        elif spec.options is not None and at_home:
            lines += _authorization(spec.options)
    if proxy is not None and proxy.authorization is not None and "proxy-authorization" not in given:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    if settings is not None and settings.once and "connection" not in given:
        lines.append("Connection: close")
    if "user-agent" not in given:
        lines.append(f"User-Agent: {(spec.options and spec.options.user_agent) or USER_AGENT}")
    if "accept" not in given:
        lines.append("Accept: */*")
    if looks_at_body(spec) and "accept-encoding" not in given:
        lines.append("Accept-Encoding: identity")
    if (body or method in _METHODS_WITH_BODY) and "content-length" not in given:
        lines.append(f"Content-Length: {len(body)}")
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape")
    if settings is not None:
        origin = origin_of(origin.scheme, origin.host, origin.port, settings)
    return HttpRequest(method=method, target=target, origin=origin, content_dropped=content_dropped, wire=head + body)


def _authorization(options: HttpOptions) -> list[str]:
    if options.basic_auth is not None:
        return [f"Authorization: Basic {credentials_of(options.basic_auth.encode())}"]
    return [] if options.bearer_token is None else [f"Authorization: Bearer {options.bearer_token}"]
