"""The worker's WAL as its core wants it: performs the outbox's WAL effects on ``cluster.wal`` and answers with events.

Appending happens in the loop, one writev per decision; it ends in the page cache.  What may have to wait for the disk
(fsync, reading, giving up segments) runs in one thread of its own; adopting, which may take a bad disk minutes, in
another one.  When ``WalWritten`` is said depends on the fsync policy:

- ``off``: after the write.  A crash of the process costs nothing, one of the machine what the system had not written.
- ``interval``: after the write, and fsync follows within the interval: a crash of the machine costs that much.
- ``batch``: after the fsync that covers it; batches that come meanwhile share the next one.

After a failed fsync what was not safe is in a new segment; it counts with the next fsync that succeeds, tried once a
second.  The same goes for what a dead worker left: it is made safe when it is adopted, and nothing is written to it any
more but how far it is acknowledged, on which nothing depends.

Once a second (``beat``) acknowledged segments expire, and the limits are looked at: above them ``full`` is true, or the
oldest results are given up until there is room; where that frees nothing, ``full`` is true as well.

It decides nothing about streams: one is removed when the core says that it is over, for only the core knows what is
still on its way there.
"""

import asyncio
import contextlib
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar, assert_never

from cluster.messages import results
from cluster.messages.results import MissedRange, PollResult
from cluster.settings import Settings
from cluster.wal.directory import WalDirectory
from cluster.wal.errors import WalError
from cluster.wal.format import Entry
from cluster.wal.log import StreamLog
from worker.events import (
    AcknowledgeWal,
    AdoptedStream,
    Event,
    ForgetStream,
    OpenStream,
    ReadWal,
    StreamOpened,
    StreamsAdopted,
    StreamTrimmed,
    WalEffect,
    WalRead,
    WalWriteFailed,
    WalWritten,
    WriteWal,
)

ADOPT_EVERY_S = 5.0
ADOPT_MAX = 16  # streams at a time; further ones the next time
SYNC_AGAIN_S = 1.0  # after a failure
ALARM_EVERY_S = 10.0  # a disk that fails is not said with each fsync

logger = logging.getLogger("worker.recorder")
T = TypeVar("T")
_GivenUp = tuple[StreamLog, list[PollResult], list[MissedRange], int]  # and the bytes of their batches


def new_stream_id() -> str:
    """A UUIDv7: random, ordered by the time of its making."""
    milliseconds = time.time_ns() // 1_000_000
    value = milliseconds << 80 | 0x7 << 76 | int.from_bytes(os.urandom(10), "big") & ~(0xF << 76)
    return str(uuid.UUID(int=value & ~(0x3 << 62) | 0x2 << 62))


class WalRecorder:
    """Raises WalError when the directory can't be used; after that trouble is logged, and told to the core.

    A disk without space is no reason to end: the first stream is made when there is some, and nothing is polled before.
    """

    def __init__(self, settings: Settings, submit: Callable[[Event], None]) -> None:
        self._submit = submit
        self._policy = settings.wal_fsync
        self._interval_s = settings.wal_fsync_interval_ms / 1000
        self._drop_oldest = settings.wal_full == "drop_oldest"
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="wal")
        self._adopter = ThreadPoolExecutor(1, thread_name_prefix="wal-adopt")
        self._path = settings.wal_dir
        self._limit_bytes = settings.wal_limit_bytes
        self._directory = WalDirectory(
            self._path,
            worker=settings.name,
            limit_bytes=self._limit_bytes,
            free_floor_bytes=settings.wal_free_floor_bytes,
        )
        self._logs: dict[str, StreamLog] = {}
        self.first_stream_id = new_stream_id()
        self._unmade = False  # the first stream: there was no space for it yet
        self._first_seqs: dict[str, int] = {}
        self._unsynced: dict[str, int] = {}  # stream -> the newest seq written and not synced; 0: nobody waits for it
        self._syncing = False
        self._sync_timer: asyncio.TimerHandle | None = None
        self._sync_failing = False
        self._alarm_at_s = 0.0
        self._restoring = False
        self._adopting = False
        self._adopt_at = 0.0
        self._dropping: list[StreamLog] = []  # the oldest of one of them is being given up
        self._dropped_in_vain = False  # the last time, that freed nothing
        self._open_wanted = False
        self._damaged = 0  # in streams that are gone
        self._said_failing = False
        self._said_not_opened = False
        self._closing = False
        self.full = False
        self.sync_failures = 0
        self._make_first()

    @property
    def damaged(self) -> int:
        return self._damaged + sum(log.damaged for log in self._logs.values())

    def perform(self, effect: WalEffect) -> None:
        match effect:
            case WriteWal(stream_id, entries):
                self._write(stream_id, entries)
            case ReadWal(stream_id, from_seq, bytes_max):
                self._read(stream_id, from_seq, bytes_max)
            case AcknowledgeWal(stream_id, seq):
                self._logs[stream_id].acknowledged(seq, time.time())
            case ForgetStream(stream_id):
                self._forget(self._logs[stream_id])
            case OpenStream():
                self._open_wanted = True
                self._open()
            case _:
                assert_never(effect)

    def beat(self) -> None:
        """Once a second."""
        if self._closing:
            return
        if self._unmade:
            self._make_first()
        if self._open_wanted:
            self._open()
        if not self._restoring and not self._adopting and self._directory.displaced():
            self._restoring = True
            self._in_thread(self._directory.restore, self._on_restored)
        self._directory.expire(time.time())
        room = self._directory.room()
        self._report_trimmed()
        if room:
            self._dropped_in_vain = False
        elif self._drop_oldest:
            self._drop()
        full = self._unmade or (not room and (not self._drop_oldest or self._dropped_in_vain))
        if full != self.full:
            self._say_full(full=full)
        if self._loop.time() >= self._adopt_at and not self._adopting and not self._restoring:
            self._adopt(ADOPT_MAX)

    async def adopt_everything(self) -> int:
        """All orphans there are, before anything else; returns how many streams they are."""
        found = await self._loop.run_in_executor(self._adopter, self._find_orphans, 1 << 30)
        self._take_adopted(found)
        return len(found)

    async def close(self) -> None:
        self._closing = True
        if self._sync_timer is not None:
            self._sync_timer.cancel()
        await self._loop.run_in_executor(self._adopter, lambda: None)  # what it may be at has ended
        self._adopter.shutdown()
        await self._loop.run_in_executor(self._thread, self._close)
        self._thread.shutdown()

    def _close(self) -> None:
        if self._policy != "off":
            self._alarm_at_s = 0.0
            self._sync_all([log for log in self._logs.values() if log.last_seq])
        for log in self._logs.values():
            if not log.last_seq:
                log.remove()
        self._directory.close()

    # ---- writing --------------------------------------------------------------------------------------------------

    def _write(self, stream_id: str, entries: list[Entry]) -> None:
        log = self._logs.get(stream_id)
        if log is None:
            assert self._unmade, f"stream {stream_id} is over"
            self._submit(WalWriteFailed())
            return
        fresh = [entry for entry in entries if entry.seq > log.last_seq]
        if fresh and fresh[0].seq != log.last_seq + 1:  # what lies between could not be written before
            self._submit(WalWriteFailed())
            return
        if fresh:
            try:
                log.append(fresh)
            except WalError as error:
                self._on_write_failed(error)
                self._submit(WalWriteFailed())
                return
            if self._said_failing:
                self._said_failing = False
                logger.warning("the WAL can be written again")
        if self._policy != "off":
            self._unsynced[stream_id] = log.last_seq
            self._schedule_sync()
        if self._policy != "batch":
            self._submit(WalWritten(stream_id, entries[-1].seq))

    def _on_write_failed(self, error: WalError) -> None:
        if not self._said_failing:
            self._said_failing = True
            logger.error("%s; no polls are started until it can be written again", error)
        if error.kind == "full" and not self._directory.evict() and self._drop_oldest:
            self._drop()

    def _schedule_sync(self) -> None:
        if self._syncing or self._sync_timer is not None:
            return
        delay_s = SYNC_AGAIN_S if self._sync_failing else 0.0 if self._policy == "batch" else self._interval_s
        self._sync_timer = self._loop.call_later(delay_s, self._sync)

    def _sync(self) -> None:
        self._sync_timer = None
        self._syncing = True
        written, self._unsynced = self._unsynced, {}
        logs = [self._logs[stream_id] for stream_id in written if stream_id in self._logs]
        self._in_thread(partial(self._sync_all, logs), partial(self._on_synced, written))

    def _on_synced(self, written: dict[str, int], failed: set[str]) -> None:
        self._syncing = False
        self._sync_failing = bool(failed)
        for stream_id, seq in written.items():
            if stream_id in failed:
                self._unsynced[stream_id] = max(seq, self._unsynced.get(stream_id, 0))
            elif seq and self._policy == "batch":
                self._submit(WalWritten(stream_id, seq))
        if self._unsynced:
            self._schedule_sync()

    def _sync_all(self, logs: list[StreamLog]) -> set[str]:
        """In the thread.  Returns the streams of which something failed."""
        failed = set()
        for log in logs:
            try:
                log.sync()
            except WalError as error:
                failed.add(log.stream_id)
                if error.kind == "shortage":  # no fsync was tried, so none failed
                    self._say_sync_waits(error)
                    continue
                self.sync_failures += 1
                if time.monotonic() >= self._alarm_at_s:
                    self._alarm_at_s = time.monotonic() + ALARM_EVERY_S
                    logger.critical("%s (failures so far: %d)", error, self.sync_failures)
        return failed

    def _say_sync_waits(self, error: WalError) -> None:
        if time.monotonic() >= self._alarm_at_s:
            self._alarm_at_s = time.monotonic() + ALARM_EVERY_S
            logger.warning("%s; what was written is made safe later", error)

    # ---- reading --------------------------------------------------------------------------------------------------

    def _read(self, stream_id: str, from_seq: int, bytes_max: int) -> None:
        log = self._logs[stream_id]

        def read() -> list[Entry]:
            try:
                return log.read(from_seq, bytes_max)
            except WalError as error:
                logger.warning("%s; trying again later", error)
                return []

        self._in_thread(read, lambda entries: self._submit(WalRead(stream_id, entries)))

    # ---- streams --------------------------------------------------------------------------------------------------

    def _make_first(self) -> None:
        try:
            self._logs[self.first_stream_id] = self._directory.create(self.first_stream_id)
        except WalError as error:
            if not self._unmade and error.kind != "full":
                raise
            self._unmade = self.full = True
            self._on_write_failed(error)
        else:
            self._unmade = False

    def _open(self) -> None:
        stream_id = new_stream_id()
        try:
            self._logs[stream_id] = self._directory.create(stream_id)
        except WalError as error:
            if not self._said_not_opened:
                self._said_not_opened = True
                logger.warning("new results wait behind older ones, no further stream can be opened: %s", error)
            return
        self._open_wanted = self._said_not_opened = False
        self._submit(StreamOpened(stream_id))

    def _adopt(self, streams_max: int) -> None:
        self._adopting = True
        self._adopt_at = self._loop.time() + ADOPT_EVERY_S
        self._in_thread(partial(self._find_orphans, streams_max), self._take_adopted, self._adopter)

    def _on_restored(self, stream_ids: list[str]) -> None:
        self._restoring = False
        self._make_safe(stream_ids)

    def _make_safe(self, stream_ids: Iterable[str]) -> None:
        """What is in them, whoever wrote it, needs an fsync that nobody waits for."""
        if self._policy != "off":
            for stream_id in stream_ids:
                self._unsynced.setdefault(stream_id, 0)
            if self._unsynced:
                self._schedule_sync()

    def _find_orphans(self, streams_max: int) -> list[tuple[StreamLog, AdoptedStream]]:
        return [(log, _describe(log)) for log in self._directory.adopt(streams_max) if not _is_over(log)]

    def _take_adopted(self, found: list[tuple[StreamLog, AdoptedStream]]) -> None:
        self._adopting = False
        for log, _ in found:
            self._logs[log.stream_id] = log
        self._make_safe(log.stream_id for log, _ in found)  # their worker may have died before
        if found:
            self._submit(StreamsAdopted([stream for _, stream in found]))

    def _report_trimmed(self) -> None:
        for stream_id, log in list(self._logs.items()):
            if log in self._dropping:
                continue  # it is told with what was given up
            if self._first_seqs.get(stream_id, 1) != log.first_seq:
                self._first_seqs[stream_id] = log.first_seq
                self._submit(StreamTrimmed(stream_id, log.first_seq))

    def _forget(self, log: StreamLog) -> None:
        self._damaged += log.damaged
        self._logs.pop(log.stream_id)
        self._first_seqs.pop(log.stream_id, None)
        log.remove()

    # ---- limits ---------------------------------------------------------------------------------------------------

    def _say_full(self, *, full: bool) -> None:
        self.full = full
        if full:
            logger.error(
                "the WAL in %s has reached its limit, or the disk has less free space than it leaves; no polls are "
                "started until results are delivered or space is freed",
                self._path,
            )
        else:
            logger.warning("the WAL in %s has room again", self._path)

    def _drop(self) -> None:
        """Give up the oldest results there are, in the oldest stream."""
        waiting = [log for _, log in sorted(self._logs.items()) if log.acked_seq < log.last_seq]
        if waiting and not self._dropping:
            self._dropping = waiting
            self._in_thread(partial(_give_up_oldest, waiting), self._on_dropped)

    def _on_dropped(self, given_up: _GivenUp | None) -> None:
        self._dropping = []
        if given_up is None:  # what can't be read or deleted is said by the log
            self._dropped_in_vain = True
            return
        log, polled, missed, size_bytes = given_up
        if polled:
            logger.error(
                "the WAL is full: %d results of stream %s that are not acknowledged were given up; they count as "
                "missed, but for those that reach the database all the same",
                len(polled), log.stream_id,
            )  # fmt: skip
        self._first_seqs[log.stream_id] = log.first_seq
        before_bytes = self._directory.bytes_on_disk
        self._submit(StreamTrimmed(log.stream_id, log.first_seq, polled, missed))
        self._dropped_in_vain = self._directory.bytes_on_disk - before_bytes >= size_bytes  # for what stands for it
        over = self._directory.bytes_on_disk >= self._limit_bytes  # else the disk's space is others' doing: no hurry
        if over and not self._dropped_in_vain:
            self._drop()

    def _in_thread(
        self, work: Callable[[], T], done: Callable[[T], None], thread: ThreadPoolExecutor | None = None
    ) -> None:
        """An exception of the work is a bug of ours and ends the process (see cluster.runtime)."""
        future = self._loop.run_in_executor(thread or self._thread, work)
        future.add_done_callback(lambda finished: None if self._closing else done(finished.result()))


def _is_over(log: StreamLog) -> bool:
    """Delivered so long ago that nobody needs it, and the ledger may have forgotten it: it is removed."""
    if not log.last_seq or log.acked_seq < log.last_seq:
        return False
    now_s = time.time()
    log.acknowledged(log.last_seq, now_s)
    log.expire(now_s)
    if log.finished:
        log.remove()
        return True
    return False


def _describe(log: StreamLog) -> AdoptedStream:
    """What is known of an orphan without reading it through; of what was acknowledged, what its worker had noted."""
    records_acked, bytes_acked = log.records_total, log.bytes_total
    if log.acked_seq < log.last_seq:
        with contextlib.suppress(WalError):  # it is said when the stream is read
            for oldest in log.read(max(log.first_seq, log.acked_seq + 1), 1)[:1]:
                records_acked, bytes_acked = oldest.records_before, oldest.bytes_before
    return AdoptedStream(
        log.stream_id,
        log.worker,
        log.first_seq,
        log.last_seq,
        log.acked_seq,
        log.records_total,
        log.bytes_total,
        records_acked,
        bytes_acked,
    )


def _give_up_oldest(logs: list[StreamLog]) -> _GivenUp | None:
    """Of the first of the streams of which something can be given up."""
    for log in logs:
        entries = log.drop_oldest()
        if not entries:
            continue
        polled: list[PollResult] = []
        missed: list[MissedRange] = []
        for entry in entries:
            batch = results.decode_to_writer(entry.body) if entry.body else None
            if isinstance(batch, results.Batch):
                polled += batch.results
                missed += batch.missed
        return log, polled, missed, sum(len(entry.body) for entry in entries)
    return None
