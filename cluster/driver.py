"""Runs one core in an asyncio loop: an inbox, one decision at a time, its effects, one timer.

It decides nothing.  Events may be submitted from any callback of the loop, also while effects are performed (they
wait in the inbox).  What can wait for other things to happen is gathered by whoever runs the driver, and asked for
before each of the core's decisions (``gather``).  An exception out of a core or an effect is a bug of ours and is left
to the loop's exception handler, which ends the process (see ``cluster.runtime``); the supervisor starts it again.
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
    def __init__(
        self,
        core: Core[Event, Effect],
        clock: Clock,
        perform: Callable[[Effect], None],
        gather: Callable[[], Event | None] = lambda: None,
    ) -> None:
        """``gather``: what has gathered since it was asked last, as one event."""
        self._core = core
        self._clock = clock
        self._perform = perform
        self._gather = gather
        self._inbox: deque[Event] = deque()
        self._running = False
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at: int | None = None

    def submit(self, event: Event) -> None:
        """Hand the core one event; returns after its effects were performed, or at once when called from an effect."""
        if self._running:
            self._inbox.append(event)
        else:
            self._take_gathered()
            self._inbox.append(event)
            self._run()

    def wake(self) -> None:
        """Hand the core what has gathered, and arm the timer."""
        if not self._running:
            self._take_gathered()
            self._run()

    def rings_within(self, span_ms: int) -> bool:
        """Whether the core is asked by its timer soon, so that what gathers need not wake it."""
        return self._timer_at is not None and self._timer_at - self._clock.now_ms() <= span_ms

    def close(self) -> None:
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _run(self) -> None:
        self._running = True
        try:
            self._empty_inbox()
            self._arm()
        finally:
            self._running = False

    def _take_gathered(self) -> None:
        event = self._gather()
        if event is not None:
            self._inbox.append(event)

    def _empty_inbox(self) -> None:
        while self._inbox:
            for effect in self._core.handle(self._inbox.popleft(), self._clock.now_ms()):
                self._perform(effect)

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
            self._take_gathered()
            self._empty_inbox()
            for effect in self._core.handle_timer(self._clock.now_ms()):
                self._perform(effect)
        finally:
            self._running = False
        self._run()
