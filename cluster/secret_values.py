"""What the references of ``cluster.secret_references`` stand for on this host, and how values are sealed.

Sealed values are Fernet tokens (AES-128-CBC and HMAC-SHA256, library cryptography).  An error names a reference and
never a value.
"""

import os
import re
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cluster.errors import InvalidInputError
from cluster.secret_references import KEY_FILE, REFERENCE, SEALED, SECRET_FILE, is_reference

if TYPE_CHECKING:
    from cryptography.fernet import Fernet

VARIABLE_PREFIX = "RINGPOLL_SECRET_"
SECRET_BYTES_MAX = 65_536
LOOK_AGAIN_S = 1.0
FILES_MAX = 4_096
OTHERS = stat.S_IRWXG | stat.S_IRWXO


class SecretError(ValueError):
    """A reference that stands for nothing here: says which, and what to do."""


class SecretFileError(SecretError):
    """A file of secrets can't be read, which is this machine's fault and may pass."""


class SecretFile(msgspec.Struct):
    """As it was when it was looked at last.  ``version``: of what was read."""

    checked_at: float  # monotonic seconds
    version: tuple[int, int, int] = (0, 0, 0)
    content: str = ""
    failure: SecretError | None = None


class SecretSource:
    """Where a worker finds what references stand for.

    Files are looked at once a second at most, and read when they have changed.  It never waits for one: what is no
    regular file is refused.
    """

    def __init__(self, environ: Mapping[str, str], directory: Path | None) -> None:
        self._environ = environ
        self._directory = directory
        self._files: dict[str, SecretFile] = {}

    def expand(self, text: str, found: list[str] | None = None) -> str:
        """The text with the secrets in it, which are added to ``found``.  Raises SecretError."""

        def replace(match: re.Match[str]) -> str:
            value = self._replace(match)
            if found is not None and match[1] is not None:
                found.append(value)
            return value

        return REFERENCE.sub(replace, text)

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
        now = time.monotonic()
        file = self._files.get(name)
        if file is None or now - file.checked_at >= LOOK_AGAIN_S:
            if file is None and len(self._files) >= FILES_MAX:
                self._files.clear()
            file = self._files[name] = self._looked_at(self._directory / name, file or SecretFile(now), reference, now)
        if file.failure is not None:
            raise file.failure
        return file.content

    def _looked_at(self, path: Path, before: SecretFile, reference: str, now: float) -> SecretFile:
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                found = os.fstat(handle)
                version = (found.st_mtime_ns, found.st_size, found.st_ino)
                if before.failure is None and before.version == version:
                    return SecretFile(now, version, before.content)
                if not stat.S_ISREG(found.st_mode):
                    return _failed(now, f"{reference}: {path.name} in secrets_dir is not a file")
                raw = os.read(handle, SECRET_BYTES_MAX + 1)
            finally:
                os.close(handle)
        except OSError as error:
            return _failed(now, f"{reference}: {path.name} in secrets_dir: {error.strerror}")
        if len(raw) > SECRET_BYTES_MAX:
            return _failed(now, f"{reference}: {path.name} in secrets_dir is larger than {SECRET_BYTES_MAX} bytes")
        try:
            return SecretFile(now, version, raw.decode().removesuffix("\n").removesuffix("\r"))
        except UnicodeDecodeError:
            return _failed(now, f"{reference}: {path.name} in secrets_dir is not UTF-8 text")


def _failed(now: float, text: str) -> SecretFile:
    return SecretFile(now, failure=SecretFileError(text))


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
