"""Waiting for conditions, with a deadline."""

import asyncio
import time


async def until(condition, timeout_s=10.0, what=""):
    """Poll a condition (it may be a coroutine function) and return its first true value."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what or condition}"
        await asyncio.sleep(0.01)
