"""What the WAL raises: one line that names the file and what to do; ``kind`` for programs."""

import errno
from pathlib import Path
from typing import Literal

from cluster.errors import ClusterError

WalErrorKind = Literal["full", "io"]

_FULL = (errno.ENOSPC, errno.EDQUOT)


class WalError(ClusterError):
    """``full``: there is no space; ``io``: everything else."""

    def __init__(self, message: str, *, kind: WalErrorKind = "io") -> None:
        super().__init__(message, code=f"wal_{kind}")
        self.kind: WalErrorKind = kind

    @classmethod
    def of(cls, error: OSError, doing: str, path: Path, advice: str = "") -> "WalError":
        """``doing``: 'append to', 'create', ..."""
        kind: WalErrorKind = "full" if error.errno in _FULL else "io"
        if not advice:
            advice = "free space there" if kind == "full" else "check the disk and the permissions"
        return cls(f"cannot {doing} {path}: {error.strerror or error}; {advice}", kind=kind)
