"""What the references of ``cluster.secret_references`` stand for on this host, and how values are sealed.

Sealed values are Fernet tokens (AES-128-CBC and HMAC-SHA256, library cryptography).  An error names a reference and
never a value.
"""

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.errors import InvalidInputError
from cluster.secret_references import KEY_FILE, REFERENCE, SEALED, SECRET_FILE, is_reference

if TYPE_CHECKING:
    from cryptography.fernet import Fernet

VARIABLE_PREFIX = "RINGPOLL_SECRET_"
SECRET_BYTES_MAX = 65_536
OTHERS = stat.S_IRWXG | stat.S_IRWXO


class SecretError(ValueError):
    """A reference that stands for nothing here: says which, and what to do."""


class SecretSource:
    """Where a worker finds what references stand for.  Files are read anew when they have changed."""

    def __init__(self, environ: Mapping[str, str], directory: Path | None) -> None:
        self._environ = environ
        self._directory = directory
        self._files: dict[str, tuple[tuple[int, int, int], str]] = {}  # name -> (as it was when it was read, content)

    def expand(self, text: str) -> str:
        """The text with the secrets in it.  Raises SecretError."""
        return REFERENCE.sub(self._replace, text)

    def _replace(self, match: re.Match[str]) -> str:
        inside = match[1]
        if inside is None:
            return "${"
        if not match[2] or not is_reference(inside):
            raise SecretError("a ${...} in it is no reference")
        if sealed := SEALED.fullmatch(inside):
            return self._unseal(sealed[1])
        if file := SECRET_FILE.fullmatch(inside):
            return self._read(file[1], "${file:" + file[1] + "}")
        value = self._environ.get(VARIABLE_PREFIX + inside)
        if value is None:
            raise SecretError(f"${{{inside}}} stands for nothing: no variable {VARIABLE_PREFIX}{inside} on this worker")
        return value

    def _unseal(self, token: str) -> str:
        from cryptography.fernet import InvalidToken  # noqa: PLC0415 - few workers need it

        try:
            return _fernet(self._read(KEY_FILE, "${sealed:...}")).decrypt(token).decode()
        except (InvalidToken, UnicodeDecodeError) as error:
            raise SecretError("${sealed:...} was not sealed with this worker's key") from error

    def _read(self, name: str, reference: str) -> str:
        if self._directory is None:
            raise SecretError(f"{reference} stands for nothing: this worker has no secrets_dir")
        path = self._directory / name
        try:
            with path.open("rb") as file:
                found = os.fstat(file.fileno())
                version = (found.st_mtime_ns, found.st_size, found.st_ino)
                known = self._files.get(name)
                if known is not None and known[0] == version:
                    return known[1]
                raw = file.read(SECRET_BYTES_MAX + 1)
        except OSError as error:
            raise SecretError(f"{reference} stands for nothing: {name} in secrets_dir: {error.strerror}") from error
        if len(raw) > SECRET_BYTES_MAX:
            raise SecretError(f"{reference} stands for nothing: {name} is larger than {SECRET_BYTES_MAX} bytes")
        try:
            content = raw.decode().removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise SecretError(f"{reference} stands for nothing: {name} is not UTF-8 text") from error
        self._files[name] = (version, content)
        return content


def new_key(directory: Path) -> Path:
    """Make the key for sealed values, readable for its owner only.  Raises InvalidInputError when there is one."""
    from cryptography.fernet import Fernet  # noqa: PLC0415 - few commands need it

    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = directory / KEY_FILE
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise InvalidInputError(
            f"there is a key already: {path}; what it has sealed could not be read any more"
        ) from error
    with os.fdopen(handle, "wb") as file:
        file.write(Fernet.generate_key() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return path


def seal(value: str, directory: Path) -> str:
    """The reference to write in place of the value.  Raises InvalidInputError."""
    path = directory / KEY_FILE
    try:
        mode = path.stat().st_mode
        key = path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "no key"
        raise InvalidInputError(f"{path}: {why}; `cluster secret new-key` makes one") from error
    if mode & OTHERS:
        raise InvalidInputError(f"{path} can be read by others: chmod 600 {path}")
    try:
        return f"${{sealed:{_fernet(key).encrypt(value.encode()).decode()}}}"
    except SecretError as error:
        raise InvalidInputError(f"{path}: {error}") from error


def _fernet(key: str) -> "Fernet":
    from cryptography.fernet import Fernet  # noqa: PLC0415 - few need it

    try:
        return Fernet(key.strip())
    except ValueError as error:
        raise SecretError(f"{KEY_FILE} holds no key; `cluster secret new-key` makes one") from error
