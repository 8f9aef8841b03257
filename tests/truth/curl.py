"""The oracle: what curl says of the same request to the same server.

curl is run as it comes, without its configuration files and proxies, told the same as a project tells us: method,
headers, body, time-out, how many redirects to follow, which certificates to trust, which addresses a name has.  Its
exit status says less than our codes do, so what is compared is whether ours is one of those that it may stand for.
"""

import asyncio
import functools
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TESTED_VERSION = "7.88"  # the reasons given in the table are for what this one does
GRACE_S = 10.0


@dataclass(frozen=True)
class CurlFinding:
    """``codes``: the error codes it may stand for; none: a complete answer.  Durations in seconds, 0 where none was."""

    exit_status: int
    codes: frozenset[str]
    status_code: int | None
    size_bytes: int
    message: str
    redirects: int
    remote_address: str
    namelookup_s: float
    connect_s: float
    appconnect_s: float
    pretransfer_s: float
    starttransfer_s: float
    total_s: float

    def shown(self) -> str:
        status = "" if self.status_code is None else f"{self.status_code}, "
        if not self.codes:
            return f"{status}{self.size_bytes} bytes"
        return f"{status}exit {self.exit_status}: {'/'.join(sorted(self.codes))}"


@functools.cache
def _path() -> str | None:
    return shutil.which("curl")


@functools.cache
def version() -> str | None:
    """curl's version, None where there is no curl."""
    if _path() is None:
        return None
    said = subprocess.run([_path(), "--version"], capture_output=True, text=True, check=True, timeout=GRACE_S).stdout
    return said.split()[1]


def command(
    urls: Sequence[str],
    *,
    method: str,
    headers: Sequence[tuple[str, str]],
    body: str | None,
    timeout_ms: int,
    follow: bool,
    authority: Path,
    resolve: Sequence[str],
    name_server_url: str | None,
) -> list[str]:
    said = [_path() or "curl", "-q", "-sS", "-w", "%{json}\n", "--noproxy", "*", "--http1.1", "--globoff"]
    said += ["--cacert", str(authority), "--max-time", f"{timeout_ms / 1000}", "--proto-redir", "=http,https"]
    if any("/." in url for url in urls):
        said.append("--path-as-is")  # it holds for redirects, too
    if follow:
        said += ["--location", "--max-redirs", "10"]
    if body is not None:
        said += ["--data-binary", "@-", "--header", "Expect:"]
    if method == "HEAD":
        said.append("--head")
    elif method != ("GET" if body is None else "POST"):
        said += ["--request", method]
    for name, value in headers:
        said += ["--header", f"{name}: {value}"]
    for each in resolve:
        said += ["--resolve", each]
    if name_server_url is not None:
        said += ["--doh-url", name_server_url, "--doh-insecure"]
    for url in urls:
        said += ["--output", "/dev/null", "--url", url]
    return said


async def run(said: Sequence[str], body: str | None, timeout_ms: int) -> CurlFinding:
    """Of several URLs, what it says of the last."""
    process = await asyncio.create_subprocess_exec(
        *said,
        stdin=asyncio.subprocess.DEVNULL if body is None else asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"LC_ALL": "C.UTF-8"},
    )
    told = None if body is None else body.encode()
    out, err = await asyncio.wait_for(process.communicate(told), GRACE_S + 2 * timeout_ms / 1e3)
    assert out, f"{' '.join(said)}: {err.decode()}"
    return finding(json.loads(out.splitlines()[-1]))


def finding(said: dict) -> CurlFinding:
    return CurlFinding(
        exit_status=said["exitcode"],
        codes=_codes(said),
        status_code=said["http_code"] or None,
        size_bytes=said["size_download"],
        message=said["errormsg"] or "",
        redirects=said["num_redirects"],
        remote_address=said["remote_ip"],
        namelookup_s=said["time_namelookup"],
        connect_s=said["time_connect"],
        appconnect_s=said["time_appconnect"],
        pretransfer_s=said["time_pretransfer"],
        starttransfer_s=said["time_starttransfer"],
        total_s=said["time_total"],
    )


_CODES = {
    0: set(),
    1: {"protocol", "blocked", "invalid_request"},  # HTTP/0.9, or a scheme that is none of ours
    3: {"invalid_request", "protocol"},  # a URL that is none, the project's or a redirect's
    6: {"dns"},
    7: {"connect_refused", "connect_unreachable"},
    8: {"protocol"},
    18: {"closed"},
    27: {"local"},
    35: {"tls_other"},
    43: {"invalid_request"},
    47: {"too_many_redirects"},
    52: {"closed"},
    55: {"reset"},
    60: {"tls_verify", "tls_expired"},
}
# Where one exit status stands for several things that we tell apart, curl's words do.
_TOLD_BY_WORDS = [
    (35, "reset by peer", {"reset"}),
    (35, "SSL_ERROR_SYSCALL", {"closed", "reset", "tls_other"}),
    (43, "chunked", {"protocol"}),
    (56, "reset by peer", {"reset"}),
    (56, "unexpected eof", {"closed"}),
    (56, "alert", {"tls_other"}),
    (56, "", {"protocol"}),
    (60, "expired", {"tls_expired"}),
    (60, "", {"tls_verify"}),
]


def _codes(said: dict) -> frozenset[str]:
    number, words = said["exitcode"], said["errormsg"] or ""
    if number == 28:
        return _which_time_out(said)
    for each, pattern, codes in _TOLD_BY_WORDS:
        if each == number and re.search(pattern, words):
            return frozenset(codes)
    return frozenset(_CODES.get(number, {f"curl's {number}"}))


def _which_time_out(said: dict) -> frozenset[str]:
    """curl has one time-out; how far it came is in its times."""
    if said["num_redirects"]:
        return frozenset({"total_timeout"})
    if not said["time_namelookup"]:
        return frozenset({"dns"})
    if not said["time_connect"] or (said["scheme"] == "HTTPS" and not said["time_appconnect"]):
        return frozenset({"connect_timeout"})
    return frozenset({"read_timeout", "total_timeout"} if said["size_upload"] else {"read_timeout"})
