"""Which engine polls a project, and one prober over both.

The lean engine does all that a project can ask for but one thing, and so nearly every project is its:

- A project with a header ``Upgrade`` is polled by the aiohttp engine.  Its answer may be a 101, behind which the peers
  speak another protocol; aiohttp's parser knows about that, httptools' stops there.  A 101 that nobody asked for is a
  final answer to either engine.

The engines share no connections and no kept names, and lack of descriptors is met by both.
"""

import asyncio
import ssl
from collections.abc import Collection
from typing import Literal, TypeAlias

from cluster.project import ProjectSpec
from worker.probe.aiohttp_engine import AiohttpProber
from worker.probe.interface import OnOutcome
from worker.probe.lean_engine import LeanProber
from worker.probe.lookup_threads import Lookup
from worker.probe.resolver import system_lookup

Engine: TypeAlias = Literal["lean", "aiohttp"]


def engine_for(spec: ProjectSpec) -> Engine:
    """The engine that polls the project."""
    if any(name.lower() == "upgrade" for name, _ in spec.headers):
        return "aiohttp"
    return "lean"


class ChoosingProber:
    """See ``interface.Prober``.  To be made inside a running loop; ``lookup`` and ``tls`` default to the system's."""

    def __init__(
        self, *, body_limit_bytes: int, lookup: Lookup = system_lookup, tls: ssl.SSLContext | None = None
    ) -> None:
        self._lean = LeanProber(
            body_limit_bytes=body_limit_bytes, lookup=lookup, tls=tls, make_room=self._close_what_waits
        )
        self._aiohttp = AiohttpProber(
            body_limit_bytes=body_limit_bytes, lookup=lookup, tls=tls, make_room=self._close_what_waits
        )

    def __repr__(self) -> str:
        return f"<ChoosingProber {self._lean!r} {self._aiohttp!r}>"

    @property
    def in_flight(self) -> int:
        return self._lean.in_flight + self._aiohttp.in_flight

    def start(self, spec: ProjectSpec, done: OnOutcome) -> None:
        if spec.headers and engine_for(spec) == "aiohttp":
            self._aiohttp.start(spec, done)
        else:
            self._lean.start(spec, done)

    def cancel_redirects(self, project_ids: Collection[int]) -> None:
        self._lean.cancel_redirects(project_ids)
        self._aiohttp.cancel_redirects(project_ids)

    def cancel_all(self) -> None:
        self._lean.cancel_all()
        self._aiohttp.cancel_all()

    async def close(self, grace_s: float) -> None:
        await asyncio.gather(self._lean.close(grace_s), self._aiohttp.close(grace_s))

    async def _close_what_waits(self) -> bool:
        made = await asyncio.gather(self._lean.make_room(), self._aiohttp.make_room())
        return any(made)
