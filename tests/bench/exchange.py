"""A connection that asks and counts answers and does nothing else: what no engine and no pipeline can go below.

asyncio.Protocol and httptools on whatever loop runs: no deadlines, no outcome, no phases, no errors.
"""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import httptools


class Exchange(asyncio.Protocol):
    def __init__(self, answered: Callable[[Any, int], None]) -> None:
        """``answered``: called with this connection and the status at the end of each answer."""
        self._answered = answered
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none by inheritance

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        self._answered(self, self._parser.get_status_code())

    def ask(self, request: bytes) -> None:
        assert self._transport is not None
        self._transport.write(request)

    def abort(self) -> None:
        assert self._transport is not None
        self._transport.abort()
