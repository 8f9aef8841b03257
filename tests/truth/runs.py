"""One case at a time, through both engines and curl; many cases at once.

The engines are made as the product makes them, but for the names and the certificates of this world.  Each poll has a
prober of its own, so that no case meets another's connections; what it has in common with others is the loop.

A case whose polls have little time is for a machine that has some.  When it does not come out as stated while others
run, it is run again by itself, at most twice, and that counts.
"""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tests.probe.probe_scripts import WAIT_S, address_info, mute_port, spec
from tests.truth import curl
from tests.truth.cases import AMPLE_MS, Case
from tests.truth.servers import Certificates, Server, TruthServer, has_ipv6, name_server, refusing_port
from worker.probe.aiohttp_engine import AiohttpProber
from worker.probe.interface import ProbeOutcome, probe
from worker.probe.lean_engine import LeanProber

EngineName = Literal["lean", "aiohttp"]
ENGINES: dict[EngineName, type[LeanProber] | type[AiohttpProber]] = {"lean": LeanProber, "aiohttp": AiohttpProber}

AT_ONCE = 12
AGAIN_MAX = 2


@dataclass
class Row:
    """What came of a case; ``requests``: how many the server had of each."""

    case: Case
    oracle: curl.CurlFinding | None = None
    ours: dict[EngineName, ProbeOutcome] = field(default_factory=dict)
    requests: dict[str, int] = field(default_factory=dict)

    def wrong(self) -> list[str]:
        """What is not as the case says; the rest of an outcome is for the tests to look at."""
        case = self.case
        found = [
            f"{engine}: {shown(outcome)}, not {case.shown()}"
            for engine, outcome in self.ours.items()
            if (outcome.status_code, outcome.error_code) != (case.status_code, case.code())
            or (case.size is not None and outcome.size_bytes != case.size)
        ]
        if self.oracle is not None and bool(disagreement := self.disagreement()) != bool(case.differs):
            found.append(disagreement or f"curl says the same, and a reason is given: {self.oracle.shown()}")
        return found

    def disagreement(self) -> str | None:
        """Where curl says something else than the case; None where it says the same, or was not asked."""
        said, case = self.oracle, self.case
        if said is None:
            return None
        complete = case.is_complete()
        if bool(said.codes) == complete or (said.codes and case.error_code not in said.codes):
            return f"curl: {said.shown()} ({said.message}); ours: {case.shown()}"
        if said.status_code != case.status_code:
            return f"curl's status is {said.status_code}, ours {case.status_code}"
        if complete and case.size is not None and said.size_bytes != case.size:
            return f"curl's body has {said.size_bytes} bytes, ours {case.size}"
        return None


def shown(outcome: ProbeOutcome) -> str:
    if outcome.error_code in {None, "status_mismatch"}:
        return f"{outcome.status_code}, {outcome.size_bytes} bytes"
    status = "" if outcome.status_code is None else f"{outcome.status_code}, "
    return f"{status}{outcome.error_code}: {outcome.error_message}"


async def run_all(cases: Sequence[Case], folder: Path, *, with_curl: bool) -> dict[str, Row]:
    """The rows of the cases by name, those apart that this machine can't have.

    To be run in a loop that runs nothing else.
    """
    cases = [case for case in cases if has_ipv6() or not case.needs_ipv6()]
    certificates = Certificates()
    authority = folder / "authority.pem"
    certificates.authority.cert_pem.write_to_path(authority)
    turn = asyncio.Semaphore(AT_ONCE)
    surprises: list[str] = []

    def note(_loop: asyncio.AbstractEventLoop, details: dict) -> None:
        # A server reports each handshake that a client breaks off, which is what half of the TLS cases are for.
        if "handshake" not in details["message"] and not isinstance(details.get("exception"), OSError):
            surprises.append(f"{details['message']}: {details.get('exception')!r}")

    asyncio.get_running_loop().set_exception_handler(note)

    async def one(case: Case) -> Row:
        async with turn:
            async with asyncio.timeout(6 * WAIT_S):
                return await _run(case, certificates, authority, with_curl=with_curl)

    rows = {row.case.name: row for row in await asyncio.gather(*map(one, cases))}
    for _ in range(AGAIN_MAX):
        for case in cases:
            if case.timeout_ms < AMPLE_MS and rows[case.name].wrong():
                rows[case.name] = await one(case)
    assert not surprises, surprises
    return rows


async def _run(case: Case, certificates: Certificates, authority: Path, *, with_curl: bool) -> Row:
    row = Row(case)
    async with contextlib.AsyncExitStack() as stack:
        main = await _start(stack, case.server, certificates)
        other = await _start(stack, case.other, certificates)
        if main is not None and other is not None:
            main.other_port, other.other_port = other.port, main.port
        port = 9 if main is None else main.port
        if case.place == "refusing":
            port = stack.enter_context(refusing_port())
        elif case.place == "mute":
            port = stack.enter_context(mute_port())
        elif case.place == "mute beside":
            stack.enter_context(mute_port("127.0.0.2", port))
        url = case.url.replace("{port}", str(port)).replace("{other}", str(other.port if other else 0))
        for name, engine in ENGINES.items():
            row.ours[name] = await _poll(case, engine, certificates, url)
            if main is not None:
                row.requests[name] = len(main.requests)
                main.connections = 0
                main.requests.clear()
        if with_curl:
            ports = {each.port for each in (main, other) if each is not None} | {port}
            row.oracle = await _ask_curl(stack, case, certificates, authority, url, ports)
            if main is not None:
                row.requests["curl"] = len(main.requests)
    return row


async def _start(
    stack: contextlib.AsyncExitStack, wanted: Server | None, certificates: Certificates
) -> TruthServer | None:
    if wanted is None:
        return None
    tls = certificates.server(wanted.tls) if wanted.tls else None
    server = TruthServer(wanted.script, tls, wanted.host)
    await server.start()
    stack.push_async_callback(server.stop)
    return server


class CaseNames:
    """What the system's resolver would say in the world of a case."""

    def __init__(self, case: Case) -> None:
        self._names = case.names
        self.let_go = threading.Event()

    def __call__(self, host: str, port: int) -> list[object]:
        found = self._names.get(host, "EAI_NONAME")
        if found == "hang":
            self.let_go.wait(WAIT_S)
            found = "EAI_AGAIN"
        if isinstance(found, str):
            raise socket.gaierror(getattr(socket, found), "whatever a library says")
        return [address_info(each, port) for each in found]


async def _poll(
    case: Case, engine: type[LeanProber] | type[AiohttpProber], certificates: Certificates, url: str
) -> ProbeOutcome:
    names = CaseNames(case)
    prober = engine(body_limit_bytes=case.body_limit_bytes, lookup=names, tls=certificates.trusting)
    project = spec(
        url,
        method=case.method,
        headers=case.headers,
        body=case.body,
        expected_status=case.expected,
        timeout_ms=case.timeout_ms,
        follow_redirects=case.follow,
    )
    try:
        for _ in range(case.polls - 1):
            await asyncio.wait_for(probe(prober, project), WAIT_S)
            await asyncio.sleep(case.pause_s)
        return await asyncio.wait_for(probe(prober, project), WAIT_S)
    finally:
        names.let_go.set()
        await prober.close(0)


async def _ask_curl(
    stack: contextlib.AsyncExitStack,
    case: Case,
    certificates: Certificates,
    authority: Path,
    url: str,
    ports: set[int],
) -> curl.CurlFinding:
    resolve, server_url = [], None
    for host, found in case.names.items():
        if isinstance(found, str):
            server = TruthServer(name_server(found), certificates.server("good"), "127.0.0.1")
            await server.start()
            stack.push_async_callback(server.stop)
            server_url = server.url("/dns-query")
        else:
            addresses = ",".join(f"[{each}]" if ":" in each else each for each in found)
            resolve += [f"{host}:{each}:{addresses}" for each in sorted(ports)]
    expected = {int(each) for each in case.expected.split(",") if each.isdigit()}
    said = curl.command(
        [url] * case.polls,
        method=case.method,
        headers=case.headers,
        body=case.body,
        timeout_ms=case.timeout_ms,
        follow=case.follow and not expected & {301, 302, 303, 307, 308},
        authority=authority,
        resolve=resolve,
        name_server_url=server_url,
    )
    return await curl.run(said, case.body, case.timeout_ms)
