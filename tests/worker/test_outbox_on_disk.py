"""The outbox and the recorder together, on real files: who may remove what, and when."""

import asyncio
import errno
import itertools
import os
import time
import uuid

import pytest

from cluster.messages.results import Batch, Committed, StreamWelcome, decode_to_writer
from cluster.settings import Settings
from tests.worker.wal_double import CREDIT, hand_over, result, results
from worker import outbox as outbox_module
from worker.core import WorkerCore
from worker.events import HeartbeatDue, OpenStream, StreamTrimmed, TellWriter, Vitals, WalEffect
from worker.outbox import WRITE_AGAIN_MS, Outbox
from worker.recorder import WalRecorder

LIMIT = 1 << 20


class Paired:
    """An outbox with a WAL of files, a clock of its own, and a writer that says what the test lets it say."""

    def __init__(self, tmp_path, **settings):
        self.settings = Settings(
            data_dir=tmp_path, name="worker-1", wal_free_floor_bytes=0, wal_fsync="off", wal_limit_bytes=LIMIT,
            **settings,
        )  # fmt: skip
        self.now = 0
        self.inbox = []
        self.sent = []  # batches
        self.recorder = WalRecorder(self.settings, self._submit)
        self.first = self.recorder.first_stream_id
        self.box = Outbox(self.first, "worker-1", "i", 0)
        self._busy = False
        self.take()

    def _submit(self, event):
        """As the driver: one at a time, and what comes from an effect waits."""
        self.inbox.append(event)
        if not self._busy:
            self.take()

    def take(self):
        self._busy = True
        self._perform()
        while self.inbox:
            event = self.inbox.pop(0)
            if isinstance(event, StreamTrimmed):
                self.box.trim(event.stream_id, event.first_seq)
            else:
                hand_over(event, self.box, self.now)
            self._perform()
        self._busy = False

    def _perform(self):
        effects, self.box.effects = self.box.effects, []
        for effect in effects:
            if isinstance(effect, TellWriter):
                message = decode_to_writer(effect.body)
                if isinstance(message, Batch):
                    self.sent.append(message)
            elif isinstance(effect, OpenStream):
                born_at_ms = uuid.UUID(self.box.live.stream_id).int >> 80
                while time.time_ns() // 1_000_000 <= born_at_ms:
                    time.sleep(0.0005)
                self.recorder.perform(effect)
            else:
                self.recorder.perform(effect)
        self.box.check()

    def later(self, duration_ms):
        self.now += duration_ms
        self.box.handle_timer(self.now)
        self.take()

    def add(self, count, first=1, *, size=100):
        self.box.add(results(count, first, text="x" * size), [], self.now)
        self.box.seal(self.now)
        self.take()

    def say(self, message):
        self.box.handle(message, self.now)
        self.take()

    def welcome(self, stream_id, committed=0):
        self.say(StreamWelcome(stream_id, committed, CREDIT))

    def path(self, stream_id):
        return self.settings.wal_dir / "worker-1" / stream_id


class Whole:
    """A worker's core with a WAL of files and no writer; its projects are polled every half minute."""

    def __init__(self, tmp_path, projects):
        settings = Settings(
            data_dir=tmp_path, name="worker-1", wal_free_floor_bytes=0, wal_fsync="off", wal_limit_bytes=LIMIT,
            wal_full="drop_oldest",
        )  # fmt: skip
        self.now = 1_700_000_000_000
        self.projects = projects
        self.inbox = []
        self.recorder = WalRecorder(settings, self._submit)
        self.core = WorkerCore(
            name="worker-1", incarnation="i", pid=1, stream_id=self.recorder.first_stream_id, grace_ms=1_000,
            now_ms=self.now,
        )  # fmt: skip
        self.core.ticker.interval_ms_of = lambda _: 30_000
        self._busy = False

    def _submit(self, event):
        self.inbox.append(event)
        if self._busy:
            return
        self._busy = True
        while self.inbox:
            for effect in self.core.handle(self.inbox.pop(0), self.now):
                if isinstance(effect, WalEffect):
                    self.recorder.perform(effect)
        self._busy = False

    async def round(self):
        """Each project is polled once, spread over half a minute."""
        for second in range(30):
            self.now += 1_000
            tick = self.now // 30_000 * 30_000
            polled = [
                result(number, scheduled_at_ms=tick, text="x" * 60)
                for number in range(second, self.projects, 30)
                if not self.recorder.full
            ]
            self.core.outbox.add(polled, [], self.now)
            self.recorder.beat()
            self._submit(HeartbeatDue(Vitals(wal_full=self.recorder.full)))
            deadline = time.monotonic() + 10
            while self.recorder._dropping:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.001)


async def test_with_drop_oldest_the_wal_keeps_within_its_limit_however_long_the_outage(tmp_path):
    """What stands for the results that were given up must not take their place."""
    whole = Whole(tmp_path, 3_000)
    dropped = []
    for _ in range(25):
        await whole.round()
        assert whole.recorder._directory.bytes_on_disk < LIMIT * 1.2
        assert not whole.recorder.full, "it polls on"
        dropped.append(whole.core._dropped)
    per_round = [after - before for before, after in itertools.pairwise(dropped[5:])]
    assert max(per_round) < 1.6 * 3_000, "no more is given up than comes"
    assert 0 < len(whole.core.given_up) <= 2 * 3_000
    kept = sum(entry.ticks for entry in whole.core.given_up.take())
    assert kept == whole.core._dropped, "each of them is counted"
    await whole.recorder.close()


@pytest.fixture
async def paired(tmp_path):
    made = []

    def make(**settings):
        made.append(Paired(tmp_path, **settings))
        return made[-1]

    yield make
    for each in made:
        await each.recorder.close()


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(outbox_module, "PARK_BYTES", 50_000)


@pytest.fixture
def refusing(monkeypatch):
    """Files that can't be written: every one whose path has one of these words."""
    words = []
    real = os.pwritev

    def pwritev(fd, buffers, offset):
        path = os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115 - as short as it gets
        if any(word in path for word in words):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, buffers, offset)

    monkeypatch.setattr(os, "pwritev", pwritev)
    return words


async def test_a_parked_stream_with_batches_that_wait_to_be_written_is_not_removed(paired, small, refusing):
    """All that was written of it is acknowledged and evicted for room; what the disk refused is still to come."""
    pair = paired()
    pair.welcome(pair.first)
    pair.add(300, size=400)
    written = pair.box.live.appended_seq
    refusing.append(pair.first)
    pair.add(2, 1_001)  # sealed, and not in the WAL
    pair.say(Committed(pair.first, 0))
    second = pair.box.live.stream_id
    assert second != pair.first
    pair.say(Committed(pair.first, written))
    while pair.recorder._directory.evict():
        pass
    pair.recorder.beat()
    assert pair.path(pair.first).is_dir()
    refusing.clear()
    pair.later(WRITE_AGAIN_MS)
    pair.welcome(pair.first, written)
    assert [row.project_id for row in pair.sent[-1].results] == [1_001, 1_002]
    pair.say(Committed(pair.first, pair.sent[-1].seq))
    assert pair.box.empty
    while pair.recorder._directory.evict():
        pass
    pair.recorder.beat()
    assert not pair.path(pair.first).exists(), "now it is over"
    assert pair.path(second).is_dir()


async def test_a_stream_that_was_given_up_whole_is_released(paired, small):
    pair = paired()
    pair.add(300, size=400)
    pair.welcome(pair.first)
    pair.say(Committed(pair.first, 0))
    second = pair.box.live.stream_id
    log = pair.recorder._logs[pair.first]
    while log.drop_oldest():
        pass
    pair.recorder.beat()
    assert not pair.path(pair.first).exists()
    assert pair.first not in pair.recorder._logs
    assert pair.box.empty
    assert pair.path(second).is_dir()


async def test_a_live_stream_that_was_given_up_whole_goes_when_it_is_parked(paired, small):
    pair = paired()
    pair.add(300, size=400)
    while pair.recorder._logs[pair.first].drop_oldest():
        pass
    pair.recorder.beat()
    assert pair.path(pair.first).is_dir(), "what is new still goes there"
    pair.recorder.perform(OpenStream())
    assert pair.box.live.stream_id != pair.first
    assert not pair.path(pair.first).exists()


async def test_what_is_released_leaves_nothing_behind_in_memory(paired, small):
    pair = paired()
    for _ in range(5):
        pair.welcome(pair.box.live.stream_id)
        old = pair.box.live.stream_id
        pair.add(300, size=400)
        pair.say(Committed(old, 0))
        pair.say(Committed(old, pair.sent[-1].seq))
        while pair.recorder._directory.evict():
            pass
        pair.recorder.beat()
    assert list(pair.recorder._logs) == [pair.box.live.stream_id]
    assert list(pair.recorder._first_seqs) in ([], [pair.box.live.stream_id])
    assert len([each for each in pair.path("").iterdir() if each.is_dir()]) == 1
