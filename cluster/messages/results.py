"""Messages on the writer's results socket.  Array-encoded msgpack, one body frame each; fields are only appended.

Workers connect a DEALER, the writer binds a ROUTER.  The results of one worker incarnation are a *stream*:
``stream_id`` and batches with a contiguous ``seq`` from 1.  The writer commits a stream's batches in order, in one
transaction with its ledger row, and acknowledges cumulatively after COMMIT.
"""

from typing import Literal

import msgspec

Trigger = Literal["tick", "immediate", "manual"]
Status = Literal["success", "failure", "unknown"]
MissedReason = Literal["overload", "overrun", "handover", "down", "paused"]


class PollResult(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What one poll found.  Instants in UTC since the epoch; a phase that did not happen is None."""

    project_id: int
    scheduled_at_ms: int
    polled_at_us: int  # when the poll started
    trigger: Trigger
    status: Status
    status_code: int | None
    response_time_ms: float | None  # start to the last byte of the body, or its limit
    error_code: str | None
    error_message: str | None  # non-empty when error_code is set, printable, <= 500 characters
    dns_ms: float | None
    connect_ms: float | None
    tls_ms: float | None
    first_byte_ms: float | None
    transfer_ms: float | None
    size_bytes: int | None  # body bytes as received
    connection_reused: bool | None
    remote_address: str | None
    epoch: int
    attempts: int | None = None  # how many a project with retries took
    certificate_expires_at_s: int | None = None  # seconds since the epoch; of one that was verified on a new connection


class MissedRange(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Ticks that were due and not polled: first, first + interval, ... last.

    It may claim ticks that somebody else has polled or counted: the writer stores what is in neither table, and a
    result takes its tick out of a range that has it.
    """

    project_id: int
    first_tick_ms: int
    last_tick_ms: int
    interval_ms: int
    reason: MissedReason
    epoch: int

    @property
    def ticks(self) -> int:
        return (self.last_tick_ms - self.first_tick_ms) // self.interval_ms + 1


# ---- worker -> writer ---------------------------------------------------------------------------------------------


class StreamHello(msgspec.Struct, array_like=True, tag="hello", frozen=True):
    """Opens or re-opens a stream on this connection; ``first_seq`` is the oldest batch the worker still has.

    A stream whose worker has died is *adopted*: another incarnation, or another worker, delivers what is left of it in
    that worker's directory.  Its ticks may have been claimed meanwhile, so the writer reconciles it with the tables.
    """

    stream_id: str  # a UUIDv7
    worker: str  # who polled
    incarnation: str  # of who sends
    first_seq: int
    acked_seq: int = 0  # what was acknowledged to the sender; a ledger before it belongs to an older database
    adopted_by: str = ""  # who sends, when it is not the incarnation that polled


class Batch(msgspec.Struct, array_like=True, tag="batch", frozen=True):
    stream_id: str
    seq: int
    results: list[PollResult]
    missed: list[MissedRange]


class StreamEnd(msgspec.Struct, array_like=True, tag="end", frozen=True):
    """Nothing follows: all batches were acknowledged, and the worker stops or has no more for this stream."""

    stream_id: str


# ---- writer -> worker ---------------------------------------------------------------------------------------------


class WhichStream(msgspec.Struct, array_like=True, tag="which_stream", frozen=True):
    """Say hello for every stream you still have: the writer is a new one, or its database is an older one."""


class StreamWelcome(msgspec.Struct, array_like=True, tag="welcome", frozen=True):
    """Send from committed_seq + 1 on, with at most ``credit_bytes`` of batches not acknowledged."""

    stream_id: str
    committed_seq: int
    credit_bytes: int


class Committed(msgspec.Struct, array_like=True, tag="committed", frozen=True):
    """Every batch up to ``seq`` is committed."""

    stream_id: str
    seq: int


class Rewind(msgspec.Struct, array_like=True, tag="rewind", frozen=True):
    """A gap: send again from ``seq`` on."""

    stream_id: str
    seq: int


ToWriter = StreamHello | Batch | StreamEnd
FromWriter = WhichStream | StreamWelcome | Committed | Rewind

decode_to_writer = msgspec.msgpack.Decoder(ToWriter).decode
decode_from_writer = msgspec.msgpack.Decoder(FromWriter).decode
encode = msgspec.msgpack.Encoder().encode
