"""What a supervisor shows to people besides log lines: what runs where, and the progress of a load.

On a terminal the load of many projects is a progress bar above which log lines pass; elsewhere a log line now and then.
"""

import logging
import threading
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from cluster.messages.control import CoordinatorHeartbeat

LOG_EVERY_MS = 5_000

logger = logging.getLogger("cluster.supervisor")


class Display:
    def __init__(self, stream: TextIO, *, human: bool) -> None:
        self._stream = stream
        self._on_terminal = human and stream.isatty()
        self._lock = threading.Lock()  # lines come from the log sink's thread
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._logged_at_ms = 0
        self._phase = ""

    def write_line(self, line: str) -> None:
        with self._lock:
            if self._progress is not None:
                self._progress.console.print(Text.from_ansi(line), soft_wrap=True)
            else:
                self._stream.write(line + "\n")
                self._stream.flush()

    def show_progress(self, heartbeat: CoordinatorHeartbeat, now_ms: int) -> bool:
        """Show how far the coordinator is; True when the cluster has just begun to poll."""
        began = heartbeat.phase == "running" and self._phase != "running"
        loading = heartbeat.phase in {"loading", "gathering"}
        first = heartbeat.phase != self._phase
        self._phase = heartbeat.phase
        if first:
            self._logged_at_ms = now_ms
        if loading and self._on_terminal:
            self._show_bar(heartbeat)
        elif loading and now_ms - self._logged_at_ms >= LOG_EVERY_MS:
            self._logged_at_ms = now_ms
            total = "" if heartbeat.projects_total is None else f" of {heartbeat.projects_total}"
            logger.info("loading projects: %d%s", heartbeat.projects_loaded, total)
        elif not loading:
            self.close()
        if began:
            logger.info("polling %d projects", heartbeat.projects_loaded)
        return began

    def close(self) -> None:
        """Take the progress bar away."""
        with self._lock:
            progress, self._progress = self._progress, None
        if progress is not None:
            progress.stop()

    def _show_bar(self, heartbeat: CoordinatorHeartbeat) -> None:
        if self._progress is None:
            progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=Console(file=self._stream),
                transient=True,
            )
            self._task = progress.add_task("loading projects", total=heartbeat.projects_total)
            progress.start()
            with self._lock:
                self._progress = progress
        if self._task is not None:
            self._progress.update(
                self._task,
                completed=heartbeat.projects_loaded,
                total=heartbeat.projects_total,
                description="loading projects" if heartbeat.phase == "loading" else "gathering workers",
                refresh=True,
            )
