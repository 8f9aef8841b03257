"""Sessions of people who logged in on the page: a JWT in a cookie, signed with a key of this data directory.

- The key is 32 random bytes in DATA_DIR/coordinator/session.key (mode 0600), made at the first login.  Another length,
  or a mode that lets others read it, makes a new one: all sessions end.
- HS256 and nothing else is accepted, whatever a token's header says; every claim we use must be there.
- A session ends after SESSION_S, when its user is removed or gets a new password (the caller compares ``generation``),
  and when it is logged out.  Which ones were logged out is known in this process only, up to ENDED_MAX of them.
- The CSRF token is an HMAC of the session's id with the same key: nothing to store, and of no use to another session.
"""

import hashlib
import hmac
import logging
import os
import secrets
import stat
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import jwt
import msgspec

from cluster.errors import ClusterError

SESSION_S = 12 * 3_600
KEY_BYTES = 32
ENDED_MAX = 10_000
COOKIE_BYTES_MAX = 2_048
ALGORITHM = "HS256"
OTHERS = stat.S_IRWXG | stat.S_IRWXO
CLAIMS = ("sub", "gen", "jti", "iat", "exp")

logger = logging.getLogger("coordinator.web.sessions")


class Session(msgspec.Struct, frozen=True):
    user: str
    generation: int
    id: str
    expires_at_s: int


class Sessions:
    def __init__(self, directory: Path, *, wall_s: Callable[[], float] = time.time) -> None:
        self.path = directory / "session.key"
        self._wall_s = wall_s
        self._key: bytes | None = None
        self._ended: OrderedDict[str, int] = OrderedDict()  # id: when it would have expired

    def begin(self, user: str, generation: int) -> tuple[Session, str]:
        """A new session and what its cookie holds.  Raises ClusterError when there is no key and none can be made."""
        if self._key is None:
            self._key = self._read_key() or self._make_key()
        now_s = int(self._wall_s())
        session = Session(user, generation, secrets.token_hex(16), now_s + SESSION_S)
        claims = {"sub": user, "gen": generation, "jti": session.id, "iat": now_s, "exp": session.expires_at_s}
        return session, jwt.encode(claims, self._key, algorithm=ALGORITHM)

    def read(self, cookie: str) -> Session | None:
        """The session of a cookie; None when it is not one of ours, is over or was logged out."""
        if len(cookie) > COOKIE_BYTES_MAX:
            return None
        self._key = self._key or self._read_key()
        if self._key is None:
            return None
        try:
            claims = jwt.decode(cookie, self._key, algorithms=[ALGORITHM], options={"require": list(CLAIMS)})
        except jwt.PyJWTError:
            return None
        user, generation, session_id, expires_at_s = (claims[name] for name in ("sub", "gen", "jti", "exp"))
        if type(generation) is not int:
            return None
        session = Session(user, generation, session_id, int(expires_at_s))
        return session if self.is_open(session) else None

    def is_open(self, session: Session) -> bool:
        """Whether it has neither expired nor been logged out."""
        return session.id not in self._ended and session.expires_at_s > self._wall_s()

    def end(self, session: Session) -> None:
        if session.id in self._ended:
            return
        now_s = self._wall_s()
        while self._ended and (len(self._ended) >= ENDED_MAX or next(iter(self._ended.values())) <= now_s):
            self._ended.popitem(last=False)
        self._ended[session.id] = session.expires_at_s

    def csrf_token(self, session: Session) -> str:
        assert self._key is not None, "a session was read or begun with it"
        return hmac.digest(self._key, b"csrf:" + session.id.encode(), hashlib.sha256).hex()

    def is_csrf_token(self, session: Session, given: str | None) -> bool:
        expected = self.csrf_token(session).encode()
        return given is not None and hmac.compare_digest(expected, given.encode("utf-8", "surrogateescape"))

    def _read_key(self) -> bytes | None:
        try:
            handle = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ClusterError(f"cannot read {self.path}: {error.strerror}; check its owner and mode") from error
        try:
            mode = os.fstat(handle).st_mode
            key = os.read(handle, KEY_BYTES + 1) if stat.S_ISREG(mode) else b""
        finally:
            os.close(handle)
        if mode & OTHERS or len(key) != KEY_BYTES:
            logger.warning(
                "%s is not a key, or others could read it; a new one is made and all sessions end", self.path
            )
            return self._make_key()
        return key

    def _make_key(self) -> bytes:
        key = secrets.token_bytes(KEY_BYTES)
        fresh = self.path.with_suffix(".new")
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh.unlink(missing_ok=True)
            handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.write(handle, key)
                os.fsync(handle)
            finally:
                os.close(handle)
            fresh.replace(self.path)
        except OSError as error:
            raise ClusterError(
                f"cannot write {self.path}: {error.strerror}; without it nobody can log in", code="disk"
            ) from error
        return key
