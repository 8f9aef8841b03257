"""Which engine polls a project, and one prober over both; the secrets that a project refers to are filled in here.

The lean engine does all that a project can ask for but one thing, and so nearly every project is its:

- A project with a header ``Upgrade`` is polled by the aiohttp engine.  Its answer may be a 101, behind which the peers
  speak another protocol; aiohttp's parser knows about that, httptools' stops there.  A 101 that nobody asked for is a
  final answer to either engine.

A project's headers and options may refer to secrets (``cluster.secret_references``).  They are looked up for each poll,
so that one that changed is sent a second later; a poll whose reference stands for nothing ends at once, as
``invalid_request``, or ``local`` where it is a file that can't be read.  A target may send back what it was sent: no
message of an outcome has a secret in it (``worker.probe.hiding``).

HTTP options say nothing of that: what they change lies in the parts that both engines have in common.

The engines share no connections and no kept names, and lack of descriptors is met by both.
"""

import asyncio
import ssl
from collections.abc import Collection
from functools import partial
from typing import Literal, TypeAlias

import msgspec

from cluster.http_options import REFERRING_OPTIONS
from cluster.project import ProjectSpec
from cluster.secret_references import has_reference
from cluster.secret_values import SecretError, SecretFileError, SecretSource
from worker.probe.aiohttp_engine import AiohttpProber
from worker.probe.errors import printable
from worker.probe.guard import OPEN_GUARD, Guard
from worker.probe.hiding import hand_over_hidden
from worker.probe.interface import FailedOutcome, OnOutcome, ProbeOutcome
from worker.probe.lean_engine import LeanProber
from worker.probe.lookup_threads import Lookup
from worker.probe.resolver import system_lookup

Engine: TypeAlias = Literal["lean", "aiohttp"]


def engine_for(spec: ProjectSpec) -> Engine:
    """The engine that polls the project."""
    if any(name.lower() == "upgrade" for name, _ in spec.headers):
        return "aiohttp"
    return "lean"


def with_secrets(spec: ProjectSpec, secrets: SecretSource, found: list[str]) -> ProjectSpec:
    """The same project with the secrets that its headers and options refer to, which are added to ``found``.

    Raises SecretError.
    """
    if any(has_reference(value) for _, value in spec.headers):
        headers = tuple((name, _filled(f"header {name}", value, secrets, found)) for name, value in spec.headers)
        spec = msgspec.structs.replace(spec, headers=headers)
    options = spec.options
    if options is not None:
        written = {name: getattr(options, name) for name in REFERRING_OPTIONS}
        changed = {
            name: _filled(name, value, secrets, found)
            for name, value in written.items()
            if value is not None and has_reference(value)
        }
        if changed:
            spec = msgspec.structs.replace(spec, options=msgspec.structs.replace(options, **changed))
    return spec


def _filled(where: str, value: str, secrets: SecretSource, found: list[str]) -> str:
    try:
        return secrets.expand(value, found)
    except SecretError as error:
        raise type(error)(f"{where}: {error}") from error


class ChoosingProber:
    """See ``interface.Prober``.  To be made inside a running loop; ``lookup`` and ``tls`` default to the system's.

    ``secrets`` None: no reference stands for anything.
    """

    def __init__(
        self,
        *,
        body_limit_bytes: int,
        lookup: Lookup = system_lookup,
        tls: ssl.SSLContext | None = None,
        secrets: SecretSource | None = None,
        guard: Guard = OPEN_GUARD,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._secrets = secrets or SecretSource({}, None)
        self._refused: set[asyncio.Handle] = set()  # their outcome is handed over in the next turn
        self._lean = LeanProber(
            body_limit_bytes=body_limit_bytes, lookup=lookup, tls=tls, make_room=self._close_what_waits, guard=guard
        )
        self._aiohttp = AiohttpProber(
            body_limit_bytes=body_limit_bytes, lookup=lookup, tls=tls, make_room=self._close_what_waits, guard=guard
        )

    def __repr__(self) -> str:
        return f"<ChoosingProber {self._lean!r} {self._aiohttp!r}>"

    @property
    def in_flight(self) -> int:
        return self._lean.in_flight + self._aiohttp.in_flight + len(self._refused)

    @property
    def names_answered_at(self) -> float:
        """When a name server last said anything (monotonic seconds)."""
        return max(self._lean.names_answered_at, self._aiohttp.names_answered_at)

    def start(self, spec: ProjectSpec, done: OnOutcome) -> None:
        if not spec.headers and spec.options is None:
            self._lean.start(spec, done)
            return
        found: list[str] = []
        try:
            filled = with_secrets(spec, self._secrets, found)
        except SecretError as error:
            self._refuse(error, done)
            return
        done = partial(hand_over_hidden, filled, found, done)
        if engine_for(filled) == "aiohttp":
            self._aiohttp.start(filled, done)
        else:
            self._lean.start(filled, done)

    def _refuse(self, error: SecretError, done: OnOutcome) -> None:
        message = printable(str(error))

        def tell() -> None:
            self._refused.discard(handle)
            if isinstance(error, SecretFileError):
                done(FailedOutcome("unknown", error_code="local", error_message=message, cause="other"))
            else:
                done(ProbeOutcome("failure", error_code="invalid_request", error_message=message))

        handle = self._loop.call_soon(tell)
        self._refused.add(handle)

    def cancel_redirects(self, project_ids: Collection[int]) -> None:
        self._lean.cancel_redirects(project_ids)
        self._aiohttp.cancel_redirects(project_ids)

    def cancel_all(self) -> None:
        for handle in self._refused:
            handle.cancel()
        self._refused.clear()
        self._lean.cancel_all()
        self._aiohttp.cancel_all()

    async def close(self, grace_s: float) -> None:
        await asyncio.gather(self._lean.close(grace_s), self._aiohttp.close(grace_s))

    async def _close_what_waits(self) -> bool:
        made = await asyncio.gather(self._lean.make_room(), self._aiohttp.make_room())
        return any(made)
