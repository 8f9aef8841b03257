"""A thread that watches something as long as its context lasts.

Whoever watches implements ``watch`` and looks at ``enough``, the event that is set at the end.
"""

import threading
from abc import ABC, abstractmethod


class Watcher(ABC):
    """A context manager: ``watch`` runs in a thread inside it."""

    def __init__(self):
        self.enough = threading.Event()
        self._thread = threading.Thread(target=self.watch, name=type(self).__name__, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_exc):
        self.enough.set()
        self._thread.join()

    @abstractmethod
    def watch(self):
        """Until ``enough`` is set."""
