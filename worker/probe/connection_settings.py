"""What makes a project's connection another one than the ordinary one to the same place.  Pure.

It is part of the key under which connections are kept, so no poll ever uses a connection that was made under other
settings.  What is the default, or plays no part for a scheme, is left out of it: then connections are shared.

A redirect to another origin keeps what says how to get there and whom to trust, and never what says who we are.
"""

import base64
import functools
from urllib.parse import unquote_to_bytes, urlsplit

import msgspec

from cluster.http_options import HttpOptions

SETTINGS_KEPT = 4_096
PROXY_PORT = 80


class TlsSettings(msgspec.Struct, frozen=True, cache_hash=True):
    """What a TLS context is made of; files are PEM."""

    verify: bool = True
    ca_file: str | None = None
    client_cert_file: str | None = None
    client_key_file: str | None = None


class Proxy(msgspec.Struct, frozen=True, cache_hash=True):
    host: str
    port: int
    authorization: str | None = None  # of Proxy-Authorization

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class ConnectionSettings(msgspec.Struct, frozen=True, cache_hash=True):
    tls: TlsSettings | None = None  # None: the system's authorities, no certificate of ours
    server_name: str | None = None
    ip_version: int | None = None
    once: bool = False  # for one request only
    proxy: Proxy | None = None


_ORDINARY = ConnectionSettings()
_ORDINARY_TLS = TlsSettings()


@functools.lru_cache(maxsize=SETTINGS_KEPT)
def settings_of(options: HttpOptions, scheme: str, *, at_home: bool) -> ConnectionSettings | None:
    """``at_home``: for the origin of the project's own URL.  None: an ordinary connection."""
    secure = scheme == "https"
    tls = TlsSettings(
        options.verify_tls,
        options.ca_file,
        options.client_cert_file if at_home else None,
        options.client_key_file if at_home else None,
    )
    settings = ConnectionSettings(
        tls if secure and tls != _ORDINARY_TLS else None,
        options.server_name if secure and at_home else None,
        options.ip_version,
        options.connection_reuse == "never",
        None if options.proxy is None else parse_proxy(options.proxy),
    )
    return None if settings == _ORDINARY else settings


def parse_proxy(url: str) -> Proxy:
    """Raises ValueError in words for people, which don't show the password."""
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = 0
    if parts.scheme != "http" or not parts.hostname or port == 0:
        raise ValueError("the proxy is not like http://proxy.example:3128")
    if parts.username is None:
        return Proxy(parts.hostname, port or PROXY_PORT)
    return Proxy(parts.hostname, port or PROXY_PORT, basic(parts.username, parts.password or ""))


def basic(user: str, password: str) -> str:
    """As in the field Authorization; both as they stand in a URL."""
    secret = unquote_to_bytes(user) + b":" + unquote_to_bytes(password)
    return f"Basic {credentials_of(secret)}"


def credentials_of(login: bytes) -> str:
    """``user:password`` as Basic sends it."""
    return base64.b64encode(login).decode()
