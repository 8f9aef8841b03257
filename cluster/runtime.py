"""The frame every role's process runs in: event loop, logging, signals, one instance per name, orphan watch.

    python -m worker        ->  role_process("worker", main)

- SIGTERM (and SIGINT when the role runs alone in a terminal) sets ``stopping``; ``main`` finishes its work and returns
  the exit status.
- A supervised role also stops when its supervisor is gone: its standard input, a pipe, reaches end of file.
- An exception nobody handled in a callback ends the process with status 70 after logging it; the supervisor restarts.
- ``run/NAME.lock`` is flock()ed, so two processes never act under one name on one data directory; an embedded database
  of that directory is not stopped as long as a role runs on it.

It knows nothing of what the roles do.
"""

import asyncio
import contextlib
import fcntl
import gc
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import IO

import uvloop

from cluster import config, logs
from cluster.embedded import server_in_use
from cluster.errors import ClusterError, ExitCode
from cluster.settings import Settings

# Rare full collections: a worker holds hundreds of thousands of long-lived objects, and walking them stalls its loop.
# Small young ones: while projects load, every new object stays, so a collection walks all that it was waiting for.
GC_THRESHOLD = (2_000, 500, 100)
EXIT_BUG = 70  # EX_SOFTWARE
DESCRIPTORS_WANTED = 1 << 20
# Beyond the two grace periods an orphaned writer may take, that of the workers' polls and its own: for last batches,
# and to close everything.
ORPHAN_EXTRA_S = 40.0
LOCK_POLL_S = 0.05
LOCK_SAY_S = 1.0  # who waits for longer says so

logger = logging.getLogger("cluster.runtime")


class RoleContext:
    """Handed to a role's main: its settings, its stop signal, its way to die of a bug."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.stopping = asyncio.Event()
        self.connection_reports = 0  # of the loop's transports; counted, never fatal
        self.orphaned = False  # stopping because the supervisor is gone: nobody stops the roles in order
        self.failure: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def stop(self, why: str) -> None:
        if not self.stopping.is_set():
            logger.info("stopping: %s", why)
            self.stopping.set()

    def fail(self, message: str, error: BaseException | None = None) -> None:
        if not self.failure.done():
            logger.critical(message, exc_info=error)
            self.failure.set_result(EXIT_BUG)


RoleMain = Callable[[RoleContext], Awaitable[int]]


def role_process(role: str, main: RoleMain) -> int:
    """A role's whole program: configured by the environment, logging set up; the exit status of the process."""
    try:
        settings = config.from_environ(role=role)
    except ClusterError as error:
        sys.stderr.write(f"Error: {error}\n")
        return int(error.exit_code)
    logs.setup(settings)
    return run_role(settings, main)


def run_role(settings: Settings, main: RoleMain) -> int:
    """Run a role to its end and return the exit status of the process."""
    try:
        with role_locks(settings):
            return uvloop.run(_run(settings, main))
    except ClusterError as error:
        logger.error("%s", error)  # noqa: TRY400 - a person's error, not a traceback
        return int(error.exit_code)
    except KeyboardInterrupt:
        return 130


async def _run(settings: Settings, main: RoleMain) -> int:
    loop = asyncio.get_running_loop()
    context = RoleContext(settings)

    def on_unhandled(_loop: asyncio.AbstractEventLoop, details: dict[str, object]) -> None:
        error = details.get("exception")
        message = str(details.get("message"))
        if _is_of_a_connection(details):
            context.connection_reports += 1
            logger.debug("a connection reported to the loop: %s: %r", message, error)
        else:
            context.fail(message, error if isinstance(error, BaseException) else None)

    loop.set_exception_handler(on_unhandled)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, context.stop, f"received {signal.Signals(number).name}")
    if settings.supervised:
        _watch_parent(loop, context)
    raise_descriptor_limit()
    gc.freeze()  # what the imports made is never garbage
    gc.set_threshold(*GC_THRESHOLD)
    running = asyncio.ensure_future(main(context))
    await asyncio.wait({running, context.failure}, return_when=asyncio.FIRST_COMPLETED)
    if running.done():
        return running.result()
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await asyncio.wait_for(running, timeout=1.0)
    return context.failure.result()


def _is_of_a_connection(details: dict[str, object]) -> bool:
    """What a transport or a protocol of the loop reports (a peer's TLS record after an abort), or a future of theirs.

    Its connection is over, and whoever uses it hears so.  An exception in a callback or a task of ours is not of these.
    """
    future = details.get("future")
    orphan = isinstance(future, asyncio.Future) and not isinstance(future, asyncio.Task)
    return "transport" in details or "protocol" in details or orphan


def raise_descriptor_limit() -> None:
    """A connection is a descriptor, and the usual soft limit of 1,024 is meant for programs that use select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _watch_parent(loop: asyncio.AbstractEventLoop, context: RoleContext) -> None:
    fd = sys.stdin.fileno()

    def on_readable() -> None:
        if not os.read(fd, 4096):
            loop.remove_reader(fd)
            context.orphaned = True
            context.stop("the supervisor is gone")

    os.set_blocking(fd, False)
    loop.add_reader(fd, on_readable)


def orphans_end_within_s(grace_s: float) -> float:
    """How long roles may go on whose supervisor is gone."""
    return 2 * grace_s + ORPHAN_EXTRA_S


@contextlib.contextmanager
def role_locks(settings: Settings) -> Iterator[None]:
    """All that a running role holds; raises ClusterError when another one of its name does not end in time."""
    with (
        server_in_use(settings.data_dir, settings.database_url),
        role_lock(settings.run_dir, settings.name, wait_s=orphans_end_within_s(settings.grace_s)),
    ):
        yield


@contextlib.contextmanager
def role_lock(run_dir: Path, name: str, *, wait_s: float = 0.0) -> Iterator[None]:
    """Hold ``run/NAME.lock``, with our pid in it; raises ClusterError when another process still holds it after
    ``wait_s``.
    """
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = run_dir / f"{name}.lock"
    began_at = time.monotonic()
    deadline = began_at + wait_s
    say_at: float | None = began_at + LOCK_SAY_S
    with path.open("a+") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                now = time.monotonic()
                if now > deadline:
                    raise ClusterError(
                        f"another {name} is still running on {run_dir.parent} ({path} is locked{_by_whom(lock)}); "
                        "end it first",
                        code="already_running",
                    ) from None
                if say_at is not None and now >= say_at:
                    say_at = None
                    logger.warning(
                        "another %s is still running on %s (%s is locked%s); waiting up to %.0f s for its end",
                        name, run_dir.parent, path, _by_whom(lock), wait_s,
                    )  # fmt: skip
                time.sleep(LOCK_POLL_S)
        with contextlib.suppress(OSError):  # a full disk; it is only for people
            os.ftruncate(lock.fileno(), 0)
            os.write(lock.fileno(), b"%d\n" % os.getpid())
        yield


def _by_whom(lock: IO[str]) -> str:
    lock.seek(0)
    pid = lock.read(32).strip()
    return f" by pid {pid}" if pid.isdecimal() else ""


__all__ = [
    "EXIT_BUG",
    "ExitCode",
    "RoleContext",
    "RoleMain",
    "orphans_end_within_s",
    "raise_descriptor_limit",
    "role_lock",
    "role_locks",
    "role_process",
    "run_role",
]
