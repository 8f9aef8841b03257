"""What the WAL raises: one line that names the file and what to do; ``kind`` for programs."""

import errno
from pathlib import Path
from typing import Literal

from cluster.errors import ClusterError

WalErrorKind = Literal["full", "shortage", "io"]

_FULL = (errno.ENOSPC, errno.EDQUOT)
_SHORTAGE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_ADVICE = {
    "full": "free space there",
    "shortage": "raise the limit of open files (ulimit -n), or look for what has them open",
    "io": "check the disk and the permissions",
}


def is_shortage(error: OSError) -> bool:
    """Of descriptors or memory: nothing was tried, so nothing is known of the file or the disk."""
    return error.errno in _SHORTAGE


class WalError(ClusterError):
    """``full``: there is no space; ``shortage``: no descriptors or memory, so nothing was tried; ``io``: the rest."""

    def __init__(self, message: str, *, kind: WalErrorKind = "io") -> None:
        super().__init__(message, code=f"wal_{kind}")
        self.kind: WalErrorKind = kind

    @classmethod
    def of(cls, error: OSError, doing: str, path: Path, advice: str = "") -> "WalError":
        """``doing``: 'append to', 'create', ..."""
        kind: WalErrorKind = "full" if error.errno in _FULL else "shortage" if is_shortage(error) else "io"
        return cls(f"cannot {doing} {path}: {error.strerror or error}; {advice or _ADVICE[kind]}", kind=kind)
