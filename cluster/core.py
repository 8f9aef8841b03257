"""The one interface of every state machine in the project.

A core is pure: no asyncio, zmq, aiohttp, asyncpg, time, random or os in it or below it.  Time is an argument.  It
takes one event, changes its own state, and returns what is to be done; it never does anything itself.  The same
cores run under :class:`cluster.driver.Driver` in a process, in the simulator and in unit tests.

Rules:

- ``now_ms`` is wall-clock time in milliseconds since the epoch and never goes back between two calls.
- ``handle`` and ``handle_timer`` return the effects in the order in which they must be performed.
- ``next_timer`` is the instant at which ``handle_timer`` wants to be called, None for never.  Being called early or
  late is harmless.
"""

from typing import Protocol, TypeVar

EventT_contra = TypeVar("EventT_contra", contravariant=True)
EffectT = TypeVar("EffectT")  # not covariant: effects are handed over in lists


class Core(Protocol[EventT_contra, EffectT]):
    def handle(self, event: EventT_contra, now_ms: int) -> "list[EffectT]": ...

    def next_timer(self) -> int | None: ...

    def handle_timer(self, now_ms: int) -> "list[EffectT]": ...
