"""Runs one core in an asyncio loop: an inbox, one decision at a time, its effects, one timer.

It decides nothing.  Events may be submitted from any callback of the loop, also while effects are performed (they
wait in the inbox).  An exception out of a core or an effect is a bug of ours and is left to the loop's exception
handler, which ends the process (see ``cluster.runtime``); the supervisor starts it again.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from cluster.clock import Clock
from cluster.core import Core

Event = TypeVar("Event")
Effect = TypeVar("Effect")


class Driver(Generic[Event, Effect]):
    def __init__(self, core: Core[Event, Effect], clock: Clock, perform: Callable[[Effect], None]) -> None:
        self._core = core
        self._clock = clock
        self._perform = perform
        self._inbox: deque[Event] = deque()
        self._running = False
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: int | None = None

    def submit(self, event: Event) -> None:
        """Hand the core one event; returns after its effects were performed, or at once when called from an effect."""
        self._inbox.append(event)
        if not self._running:
            self._run()

    def start(self) -> None:
        """Arm the first timer."""
        self._run()

    def close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _run(self) -> None:
        self._running = True
        try:
            while self._inbox:
                for effect in self._core.handle(self._inbox.popleft(), self._clock.now_ms()):
                    self._perform(effect)
            self._arm()
        finally:
            self._running = False

    def _arm(self) -> None:
        due = None if self._closed else self._core.next_timer()
        if due == self._timer_at and self._timer is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_at = due
        if due is not None:
            delay_s = max(0.0, (due - self._clock.now_ms()) / 1000)
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._timer_at = None
        if self._closed:
            return
        self._running = True
        try:
            for effect in self._core.handle_timer(self._clock.now_ms()):
                self._perform(effect)
        finally:
            self._running = False
        self._run()
