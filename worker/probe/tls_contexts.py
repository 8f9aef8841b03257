"""TLS contexts by their settings: one for all projects that have the same, made anew when one of its files has changed.

- Files are looked at when a connection is to be opened, at most once in ``CHECK_S``, and never by the loop itself:
  reading them, and the system's authorities, takes a thread.  Who needs the same context meanwhile waits for it, too.
- A connection that is kept was made with the files as they were: it is replaced when it grows old (see ``pool``).
- A file that can't be read is this machine's fault (``local``); one that is not what it should be is the project's
  (``invalid_request``).
"""

import asyncio
import os
import ssl
import stat
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec

from worker.probe.connection_settings import TlsSettings
from worker.probe.errors import ErrorCode, ProbeError

CONTEXTS_MAX = 512  # one with the system's authorities takes about a megabyte
CHECK_S = 1.0
THREADS = 2

_Stamp = tuple[int, int, int]  # of a file: when it was changed (ns), its number, its size


class LoadedContext(msgspec.Struct, frozen=True):
    """A context, or why there is none."""

    stamps: tuple[_Stamp, ...] = ()
    context: ssl.SSLContext | None = None
    error_code: ErrorCode = "local"
    error_message: str = ""


class TlsContexts:
    """To be made inside a running loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loaded: dict[TlsSettings, tuple[float, LoadedContext]] = {}  # the longest not looked at first
        self._loading: dict[TlsSettings, asyncio.Future[LoadedContext]] = {}
        self._threads: ThreadPoolExecutor | None = None

    def close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def get(self, settings: TlsSettings) -> ssl.SSLContext:
        """Raises ProbeError."""
        checked_at, loaded = self._loaded.get(settings, (0.0, None))
        if loaded is None or time.monotonic() >= checked_at + CHECK_S:
            loading = self._loading.get(settings)
            if loading is None:
                if self._threads is None:
                    self._threads = ThreadPoolExecutor(THREADS, "tls-files")
                loading = self._loop.run_in_executor(self._threads, load, settings, loaded)
                self._loading[settings] = loading
                loading.add_done_callback(lambda done: self._keep(settings, done))
            loaded = await asyncio.shield(loading)
        if loaded.context is None:
            raise ProbeError(loaded.error_code, loaded.error_message)
        return loaded.context

    def _keep(self, settings: TlsSettings, done: asyncio.Future[LoadedContext]) -> None:
        del self._loading[settings]
        if done.cancelled() or done.exception() is not None:
            return  # a bug of ours: raised to who waits
        self._loaded.pop(settings, None)
        while len(self._loaded) >= CONTEXTS_MAX:
            del self._loaded[next(iter(self._loaded))]
        self._loaded[settings] = (time.monotonic(), done.result())


def load(settings: TlsSettings, before: LoadedContext | None) -> LoadedContext:
    """The context with the files as they are now: that of before if they are the same.  It blocks."""
    stamps = []
    for name in ("ca_file", "client_cert_file", "client_key_file"):
        path: str | None = getattr(settings, name)
        if path is None:
            continue
        try:
            stamps.append(_stamp(path))
        except OSError as error:
            why = (error.strerror or "no reason given").lower()
            return LoadedContext(error_code="local", error_message=f"this machine can't read {name} {path}: {why}")
    if before is not None and before.context is not None and before.stamps == tuple(stamps):
        return before
    name, path = "ca_file", settings.ca_file
    try:
        context = _trusting(settings)
        if settings.client_cert_file is not None:
            name, path = "client_cert_file", settings.client_cert_file
            # A password that is given is not asked for, on a terminal that may be there.
            context.load_cert_chain(settings.client_cert_file, settings.client_key_file, password="")
    except (OSError, ValueError) as error:
        if not isinstance(error, (ssl.SSLError, ValueError)):
            why = (error.strerror or "no reason given").lower()
            return LoadedContext(error_code="local", error_message=f"this machine can't read {name} {path}: {why}")
        reason = getattr(error, "reason", None) or "not PEM, or encrypted"
        what = f"{name} {path}"
        if name == "client_cert_file" and settings.client_key_file is not None:
            what += f" with client_key_file {settings.client_key_file}"
        return LoadedContext(
            error_code="invalid_request", error_message=f"{what} can't be used: {reason.replace('_', ' ').lower()}"
        )
    context.set_alpn_protocols(["http/1.1"])
    return LoadedContext(tuple(stamps), context)


def _trusting(settings: TlsSettings) -> ssl.SSLContext:
    if settings.verify:
        return ssl.create_default_context(cafile=settings.ca_file)  # those in the file, and no others
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _stamp(path: str) -> _Stamp:
    found = os.stat(path)  # noqa: PTH116 - a path as it is written
    if not stat.S_ISREG(found.st_mode):
        raise OSError(0, "it is not a file")
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # that it can be read is said of each by name
    os.close(descriptor)
    return found.st_mtime_ns, found.st_ino, found.st_size
