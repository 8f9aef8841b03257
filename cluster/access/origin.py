"""Whether a page of another site may be behind a request.  Pure: looks at header lines only.

- ``is_own_host``: without authentication a request must name this machine.  A browser sends what the person's address
  bar has, so a page whose name was made to lead to 127.0.0.1 (DNS rebinding) says its own name and is refused.
- ``is_cross_site``: whether a request that changes something comes from a page of elsewhere.  Sec-Fetch-Site decides
  where a browser sends it (over TLS and on loopback), else Origin, which every browser sends with what isn't GET or
  HEAD.  Who sends neither is no browser, and can't be made to send anything by a page.
"""

import ipaddress
import re
from urllib.parse import urlsplit

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:/@\s]+)(?::[0-9]{1,5})?")


def is_loopback_host(host: str) -> bool:
    """A name or address, in brackets or not, that always leads to this machine."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host.lower() == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def is_own_host(host_header: str | None) -> bool:
    """Whether a Host header names loopback, with any port (one may have been forwarded)."""
    found = _HOST.fullmatch(host_header or "")
    return found is not None and is_loopback_host(found["host"])


def is_cross_site(
    method: str, *, scheme: str, host_header: str | None, origin: str | None, sec_fetch_site: str | None
) -> bool:
    """``scheme`` is what the browser sees: https, too, where a proxy ends TLS."""
    if method in SAFE_METHODS:
        return False
    if sec_fetch_site is not None:
        return sec_fetch_site not in {"same-origin", "none"}  # same-site: another port of this machine
    if origin is None:
        return False
    try:
        parts = urlsplit(origin)
    except ValueError:
        return True
    return (parts.scheme, parts.netloc.lower()) != (scheme, (host_header or "").lower())
