"""Random lives of a stream against a model: what was appended and may not be gone is read back, in order, once."""

import contextlib
import errno
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cluster.wal.errors import WalError
from cluster.wal.format import SEGMENT_HEADER_BYTES, encode_entry_header
from cluster.wal.segment import scan_file
from tests.examples import examples
from tests.wal.streams import STREAM, Source, crash, directory, files_of

RETAIN_S = 600.0
COUNTS = st.integers(1, 6)
SIZES = st.sampled_from([1, 30, 200, 700, 3_000])


class StreamModel(RuleBasedStateMachine):
    """``source`` is the model: all entries ever; on disk is what lies from ``first_seq`` on."""

    def __init__(self):
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="wal-model-"))
        self.source = Source()
        self.worker = 1
        self.now_s = 1_800_000_000.0
        self.acked = 0
        self.acked_at = {}  # seq -> when it was acknowledged, as long as it is
        self.safe_seq = 0
        self.gone_to = 0  # deleted, which was right at the time
        self.wal = self.log = None

    @initialize()
    def create(self):
        self.wal = directory(self.root, f"worker-{self.worker}", retain_s=RETAIN_S)
        self.log = self.wal.create(STREAM)

    def teardown(self):
        if self.wal is not None:
            self.wal.close()
        shutil.rmtree(self.root)

    # ---- what happens -----------------------------------------------------------------------------------------------

    @rule(count=COUNTS, size=SIZES)
    def append(self, count, size):
        self.log.append(self.source.take(count, size))

    @rule(count=COUNTS, size=SIZES, room=st.integers(0, 3_000), error=st.sampled_from([errno.ENOSPC, errno.EIO]))
    def append_fails(self, count, size, room, error):
        """After so many bytes, or not at all when it fits."""
        before = self.log.last_seq
        fresh = self.source.take(count, size)
        with pytest.MonkeyPatch.context() as patch:
            real = os.pwrite

            def write(fd, content, offset):
                nonlocal room
                if room == 0:
                    raise OSError(error, os.strerror(error))
                written = real(fd, content[:room], offset)
                room -= written
                return written

            patch.setattr(os, "pwrite", write)
            patch.setattr(os, "pwritev", lambda fd, buffers, offset: write(fd, b"".join(buffers), offset))
            try:
                self.log.append(fresh)
            except WalError:
                self.source.forget(before)
                self.source.seed += 1  # something else comes in their place

    @rule(failures=st.integers(0, 3))
    def sync(self, failures):
        with pytest.MonkeyPatch.context() as patch:
            real = os.fdatasync

            def fdatasync(fd):
                nonlocal failures
                if failures:
                    failures -= 1
                    raise OSError(errno.EIO, "Input/output error")
                real(fd)

            patch.setattr(os, "fdatasync", fdatasync)
            try:
                self.log.sync()
            except WalError:
                return
        self.safe_seq = self.log.last_seq

    @rule(data=st.data())
    def acknowledge(self, data):
        """Sometimes less than before: the database was set back."""
        seq = data.draw(st.integers(0, self.log.last_seq))
        self.log.acknowledged(seq, self.now_s)
        self.acked = seq
        self.acked_at = {each: at for each, at in self.acked_at.items() if each <= seq}
        for each in range(1, seq + 1):
            self.acked_at.setdefault(each, self.now_s)

    @rule(seconds=st.sampled_from([1, 300, 700]))
    def time_passes(self, seconds):
        self.now_s += seconds
        first_seq = self.log.first_seq
        self.log.expire(self.now_s)
        for seq in range(first_seq, self.log.first_seq):
            assert self.acked_at[seq] <= self.now_s - RETAIN_S
            self.gone_to = seq

    @rule()
    def evict(self):
        first_seq, size = self.log.first_seq, self.log.bytes_on_disk
        freed = self.log.evict_acknowledged()
        assert self.log.bytes_on_disk == size - freed
        assert (self.log.first_seq > first_seq) == (freed > 0)
        if freed:
            self.gone_to = self.log.first_seq - 1
            assert self.gone_to <= self.acked

    @precondition(lambda self: self.log.last_seq > self.acked)
    @rule()
    def drop(self):
        first = max(self.log.first_seq, self.log.acked_seq + 1)
        dropped = self.log.drop_oldest()
        assert dropped == self.source.entries[first - 1 : self.log.first_seq - 1]
        self.gone_to = max(self.gone_to, self.log.first_seq - 1)

    # ---- who dies ---------------------------------------------------------------------------------------------------

    @rule(killed=st.booleans(), torn=st.integers(0, 300), other=st.booleans())
    def restart(self, killed, torn, other):
        """A process ends or is killed, maybe in the middle of an append; it, or another worker, adopts the stream."""
        log, last_seq, first_seq = self.log, self.log.last_seq, self.log.first_seq
        totals = (log.records_total, log.bytes_total)
        if killed:
            crash(log)
        else:
            log.close()
        if killed and torn and files_of(log):
            (entry,) = self.source.take(1, 300)
            self.source.forget(last_seq)
            path = max(files_of(log), key=lambda each: (int(each.name[:20]), each.name))
            with path.open("ab") as file:
                file.write((encode_entry_header(entry) + entry.body)[:torn])
        self.wal.close()
        with contextlib.suppress(FileNotFoundError):
            os.utime(log.path / "acked", (self.now_s, self.now_s))
        self.worker += other
        self.wal = directory(self.root, f"worker-{self.worker}", retain_s=RETAIN_S)
        adopted = self.wal.adopt(10)
        if first_seq > last_seq:  # nothing was left
            assert adopted == []
            self.begin_again()
            return
        (self.log,) = adopted
        assert self.log.worker == "worker-1"
        assert (self.log.first_seq, self.log.last_seq) == (first_seq, last_seq)
        assert (self.log.records_total, self.log.bytes_total) == totals
        assert self.log.acked_seq in (0, *range(1, last_seq + 1))
        assert self.log.damaged == 0

    @rule(data=st.data())
    def power_fails(self, data):
        """The end of the newest segment is not on the disk, as far as it was not synced."""
        unsynced = self.log._appender.unsynced
        newest = self.log._chain.segments[-1:]
        if unsynced != newest or not newest or self.log._syncer._failed:
            return
        segment = newest[0]
        size = data.draw(st.integers(self.end_of_what_is_safe(segment), segment.end))
        crash(self.log)
        os.truncate(segment.path, size)
        self.wal.close()
        with contextlib.suppress(FileNotFoundError):
            os.utime(self.log.path / "acked", (self.now_s, self.now_s))
        (*adopted,) = self.wal.adopt(1)
        if not adopted:
            assert self.safe_seq <= self.gone_to
            self.begin_again()
            return
        (self.log,) = adopted
        assert self.log.last_seq >= min(self.safe_seq, len(self.source.entries))
        self.source.forget(self.log.last_seq)
        self.source.seed += 1
        self.acked = min(self.acked, self.log.last_seq)
        self.acked_at = {each: at for each, at in self.acked_at.items() if each <= self.acked}

    def end_of_what_is_safe(self, segment):
        if segment.first_seq > self.safe_seq:
            return 0
        with segment.path.open("rb") as file:
            found = [item for item, _ in scan_file(file.fileno(), SEGMENT_HEADER_BYTES, segment.end)]
        return max(item.end for item in found if item.entry.seq <= self.safe_seq)

    def begin_again(self):
        """With a new stream, as every process does."""
        self.source = Source(self.source.seed + 1)
        self.acked = self.safe_seq = self.gone_to = 0
        self.acked_at = {}
        self.worker = 1
        self.wal.close()
        self.wal = directory(self.root, "worker-1", retain_s=RETAIN_S)
        self.log = self.wal.create(STREAM)

    # ---- what always holds ------------------------------------------------------------------------------------------

    @rule(data=st.data(), bytes_max=st.sampled_from([1, 100, 1_000, 10_000]))
    def read(self, data, bytes_max):
        first, last = self.log.first_seq, self.log.last_seq
        seq = data.draw(st.integers(first, last + 1))
        part = self.log.read(seq, bytes_max)
        assert part == self.source.entries[seq - 1 : seq - 1 + len(part)]
        assert bool(part) == (seq <= last)

    @invariant()
    def everything_that_must_be_there_is(self):
        if self.log is None:
            return
        log = self.log
        assert log.last_seq == len(self.source.entries)
        assert log.first_seq <= self.gone_to + 1
        assert log.read(log.first_seq, 1 << 30) == self.source.entries[log.first_seq - 1 :]
        assert log.bytes_on_disk == sum(segment.size_bytes for segment in log._chain.segments)
        assert log.damaged == 0
        assert log.finished == (log.first_seq > log.last_seq and log._confirmed_seq >= log.last_seq)


TestStreamModel = StreamModel.TestCase
TestStreamModel.settings = settings(max_examples=examples(120), stateful_step_count=40)
