"""One child process: its lines, its end, its signals; with a pidfd and without."""

import asyncio
import errno
import os
import signal
import sys

import pytest

from cluster.supervisor.process import ChildProcess

DEADLINE_S = 20


@pytest.fixture(params=[True, False], ids=["pidfd", "thread"])
def start(request):
    if request.param and not hasattr(os, "pidfd_open"):
        pytest.skip("this system has no pidfd")

    def start(script):
        lines = []
        ended = asyncio.get_running_loop().create_future()
        child = ChildProcess(
            [sys.executable, "-c", script],
            dict(os.environ),
            lambda pid, line: lines.append((pid, line)),
            ended.set_result,
            use_pidfd=request.param,
        )
        return child, lines, ended

    return start


async def test_its_last_words_come_before_its_end(start):
    child, lines, ended = start("import sys; [print('x' * 100, i) for i in range(2000)]; sys.stderr.write('bye')")
    seen_at_end = []
    ended.add_done_callback(lambda _: seen_at_end.append(len(lines)))
    assert await asyncio.wait_for(ended, DEADLINE_S) == 0
    await asyncio.sleep(0)
    assert seen_at_end == [2001]
    assert lines[-1] == (child.pid, b"bye")
    assert [line for _, line in lines[:-1]] == [b"x" * 100 + b" %d" % number for number in range(2_000)]
    assert not child.is_alive


@pytest.mark.parametrize(("script", "status"), [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 9)", -9)])
async def test_its_exit_status(start, script, status):
    _, _, ended = start(script)
    assert await asyncio.wait_for(ended, DEADLINE_S) == status


async def test_without_a_descriptor_for_it_its_end_is_seen_all_the_same(start, monkeypatch):
    """It runs already: nobody else would reap it, or know that its name is taken."""

    def refuse(_pid):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    child, lines, ended = start("import time; print('up', flush=True); time.sleep(60)")
    async with asyncio.timeout(DEADLINE_S):
        while not lines:
            await asyncio.sleep(0.01)
    child.signal(signal.SIGKILL)
    assert await asyncio.wait_for(ended, DEADLINE_S) == -9


async def test_signals_reach_it_and_afterwards_nobody(start):
    child, lines, ended = start("import time; print('up', flush=True); time.sleep(60)")
    async with asyncio.timeout(DEADLINE_S):
        while not lines:
            await asyncio.sleep(0.01)
    child.signal(signal.SIGTERM)
    assert await asyncio.wait_for(ended, DEADLINE_S) == -15
    child.signal(signal.SIGKILL)


async def test_its_standard_input_ends_when_we_are_gone_and_not_before(start):
    child, _, ended = start("import sys; sys.stdin.read(); print('eof')")
    done, _ = await asyncio.wait({ended}, timeout=0.3)
    assert not done
    child._process.stdin.close()
    assert await asyncio.wait_for(ended, DEADLINE_S) == 0


async def test_an_end_is_seen_even_when_a_grandchild_keeps_the_pipe_open(start):
    script = (
        "import subprocess, sys\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import sys; sys.stdin.read()'], stdin=0)\n"
        "print(p.pid, flush=True)"
    )
    _, lines, ended = start(script)
    assert await asyncio.wait_for(ended, DEADLINE_S) == 0
    os.kill(int(lines[0][1]), signal.SIGKILL)


async def test_a_program_that_is_not_there_is_an_oserror():
    with pytest.raises(FileNotFoundError):
        ChildProcess(["/no/such/program"], {}, lambda *_: None, lambda *_: None)
