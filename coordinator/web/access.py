"""Who may do what over HTTP: the middleware, the endpoints of the session, the headers that keep a browser safe.

Two ways, by the address that is served (``cluster.config.serves_this_machine_only``):

- **On loopback** there is no login.  Every request must name this machine in its Host header, and one that changes
  something must not come from a page of another site (``cluster.access.origin``); else 403 ``cross_site``.
- **Elsewhere, or behind a proxy**, each route asks for its scope: by ``Authorization: Bearer TOKEN``, or by the cookie
  of a session, with which a request that changes something also needs the session's X-CSRF-Token.  401 says nothing
  about why; 403 names the scope that is missing; 503 while nothing is known of tokens and users.

Credentials are never in an answer or a log line; a name that was typed at a failed login isn't either, it may be a
password.

Wrong tokens and logins are limited by client address, logins by user name too.  Behind a proxy all clients have its
address (X-Forwarded-For is what a client likes to write), so there the limits by address are wider and shared by all.
"""

import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from math import ceil
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from aiohttp import web
from msgspec import Meta

from cluster.access.audit_log import PAGE_ROWS_MAX, AuditRecord
from cluster.access.credentials import Credentials, CredentialsUnavailableError
from cluster.access.origin import SAFE_METHODS, is_cross_site, is_own_host
from cluster.access.rate_limit import RateLimit, address_key
from cluster.access.scopes import RouteScope, Scope, bearer_of, covered_by, covers, is_name, parse_token
from cluster.access.users import PASSWORD_BYTES_MAX, Passwords, find_password, note_login
from cluster.config import serves_this_machine_only
from cluster.settings import Settings
from coordinator.web.problems import ProblemError
from coordinator.web.sessions import SESSION_S, Session, Sessions

LOCAL = "local"
CSRF_HEADER = "X-CSRF-Token"
PAGE_POLICY = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
HSTS_S = 365 * 86_400

logger = logging.getLogger("coordinator.web.access")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
ScopeOf = Callable[[web.Request], RouteScope]


class Identity(msgspec.Struct, frozen=True):
    """Who sent a request."""

    actor: str  # token:NAME, user:NAME, local
    scope: Scope
    token_id: str | None = None
    session: Session | None = None


# Of every request that was let in to a route with a scope.
IDENTITY = web.RequestKey("identity", Identity)


class LoginBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    user: Annotated[str, Meta(max_length=200)]
    password: Annotated[str, Meta(max_length=PASSWORD_BYTES_MAX)]


class AuditQuery(msgspec.Struct, frozen=True, kw_only=True):
    actor: (
        Annotated[str, Meta(max_length=100, description="Only what was done by token:NAME, user:NAME, ...")] | None
    ) = None
    limit: Annotated[int, Meta(ge=1, le=PAGE_ROWS_MAX, description="At most so many items.")] = 50
    cursor: Annotated[str, Meta(pattern="^[0-9]{1,18}$", description="`next_cursor` of the page before.")] | None = None


class AuditPage(msgspec.Struct, frozen=True):
    items: list[AuditRecord]
    next_cursor: str | None


class SessionView(msgspec.Struct, frozen=True):
    """Who is asking.  ``user`` is null for who has no session; ``csrf_token`` goes with what changes something."""

    auth: Literal["off", "required"]
    user: str | None
    scopes: list[Scope]
    csrf_token: str | None


def access_on_loopback() -> "Access":
    """For a server on loopback, whatever its configuration: no login, no database."""
    settings = Settings(data_dir=Path("/nonexistent"))
    return Access(settings, Credentials("postgresql://"))


class Access:
    """``close`` it in the end."""

    def __init__(
        self,
        settings: Settings,
        credentials: Credentials,
        *,
        sessions: Sessions | None = None,
        passwords: Passwords | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.required = not serves_this_machine_only(settings)
        self._tls = settings.http_cert is not None
        self._secure = self._tls or settings.http_behind_tls  # what the browser sees
        self._cookie = "__Host-ringpoll" if self._secure else "ringpoll_session"
        self._credentials = credentials
        self._sessions = sessions or Sessions(settings.data_dir / "coordinator")
        self._passwords = passwords or Passwords()
        self._now_s = now_s
        shared = settings.http_behind_tls
        self._logins_by_address = RateLimit(burst=100, per_s=1.0) if shared else RateLimit(burst=20, per_s=1 / 6)
        self._logins_by_user = RateLimit(burst=10, per_s=1 / 30)
        self._wrong_tokens = RateLimit(burst=300, per_s=5.0) if shared else RateLimit(burst=30, per_s=0.5)
        self.refused = {"http_unauthenticated": 0, "http_forbidden": 0, "http_cross_site": 0, "http_limited": 0}
        if self.required and not self._secure:
            logger.warning(
                "HTTP on %s is beyond loopback and not encrypted, so passwords and tokens can be read on their way: "
                "give --http-cert and --http-key, or --http-behind-tls where a proxy ends TLS",
                settings.http,
            )

    async def close(self) -> None:
        await self._credentials.close()
        self._passwords.close()

    # ---- every request ----------------------------------------------------------------------------------------------

    def middleware(self, scope_of: ScopeOf) -> Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]:
        """``scope_of``: of the route that was found; not asked when there is none."""

        @web.middleware
        async def check_access(request: web.Request, handler: Handler) -> web.StreamResponse:
            identity = Identity(LOCAL, "admin")
            if not self.required:
                self._check_local(request)
            elif request.match_info.http_exception is not None or (wanted := scope_of(request)) == "none":
                return await handler(request)
            else:
                identity = await self._identified(request)
                if not covers(identity.scope, wanted):
                    self.refused["http_forbidden"] += 1
                    raise ProblemError(
                        "forbidden", f"this needs the scope {wanted}; {identity.actor} has {identity.scope}"
                    )
                self._check_csrf(request, identity)
            request[IDENTITY] = identity
            return await handler(request)

        return check_access

    async def secure_answer(self, _request: web.Request, answer: web.StreamResponse) -> None:
        """For ``on_response_prepare``: the headers of every answer.  A handler's own policy stands."""
        headers = answer.headers
        headers.setdefault("Content-Security-Policy", PAGE_POLICY)
        headers.setdefault("Referrer-Policy", "no-referrer")
        headers["X-Content-Type-Options"] = "nosniff"
        headers["X-Frame-Options"] = "DENY"
        headers["Cross-Origin-Opener-Policy"] = "same-origin"
        headers["Cross-Origin-Resource-Policy"] = "same-origin"
        if self._tls and self.required:  # not on loopback: it would hold for every port of localhost
            headers["Strict-Transport-Security"] = f"max-age={HSTS_S}"

    async def still_allowed(self, request: web.Request) -> bool:
        """Whether who was let in would be let in now: for an answer that goes on for long."""
        identity = request.get(IDENTITY)
        if not self.required or identity is None:
            return True
        with contextlib.suppress(CredentialsUnavailableError):
            if identity.token_id is not None:
                return await self._credentials.has_token(identity.token_id)
            if identity.session is not None:
                return await self._session_holds(identity.session) is not None
        return False

    def _check_local(self, request: web.Request) -> None:
        if not is_own_host(request.headers.get("Host")):
            self.refused["http_cross_site"] += 1
            raise ProblemError(
                "cross_site",
                "without authentication the Host of a request must be localhost or a loopback address; to be reached "
                "by another name, serve beyond loopback or with --http-behind-tls",
            )
        self._check_site(request)

    def _check_site(self, request: web.Request) -> None:
        if is_cross_site(
            request.method,
            scheme="https" if self._secure else "http",
            host_header=request.headers.get("Host"),
            origin=request.headers.get("Origin"),
            sec_fetch_site=request.headers.get("Sec-Fetch-Site"),
        ):
            self.refused["http_cross_site"] += 1
            raise ProblemError("cross_site", "a page of another site can't change anything here")

    def _check_csrf(self, request: web.Request, identity: Identity) -> None:
        if identity.session is None or request.method in SAFE_METHODS:
            return
        self._check_site(request)
        if not self._sessions.is_csrf_token(identity.session, request.headers.get(CSRF_HEADER)):
            self.refused["http_forbidden"] += 1
            raise ProblemError(
                "forbidden", f"a request that changes something needs the {CSRF_HEADER} that GET /api/v1/session gives"
            )

    async def _identified(self, request: web.Request) -> Identity:
        """Raises ProblemError unless the credentials are right."""
        identity = await self._identity(request)
        if identity is None:
            self.refused["http_unauthenticated"] += 1
            raise ProblemError(
                "unauthenticated",
                "this needs a valid token (Authorization: Bearer TOKEN; `cluster token create` makes one) or a login",
                headers={"WWW-Authenticate": 'Bearer realm="ringpoll"'},
            )
        return identity

    async def _identity(self, request: web.Request) -> Identity | None:
        """By the token, where there is one; other kinds of Authorization are those of a proxy."""
        given = bearer_of(request.headers.get("Authorization", ""))
        return await (self._by_session(request) if given is None else self._by_token(given, request.remote))

    async def _by_token(self, given: str, address: str | None) -> Identity | None:
        parts = parse_token(given)
        key, now_s = address_key(address), self._now_s()
        if parts is not None:
            # Who has sent too many wrong ones makes us look into memory only: a right one works all the same.
            found = await self._credentials.token(parts, may_look_again=self._wrong_tokens.wait_s(key, now_s) == 0)
            if found is not None:
                return Identity(f"token:{found.name}", found.scope, token_id=found.id)
        if wait_s := self._wrong_tokens.take(key, now_s):
            raise self._limited("too many wrong tokens from this address", wait_s)
        return None

    async def _by_session(self, request: web.Request) -> Identity | None:
        cookie = request.cookies.get(self._cookie)
        session = None if cookie is None else self._sessions.read(cookie)
        scope = None if session is None else await self._session_holds(session)
        if session is None or scope is None:
            return None
        return Identity(f"user:{session.user}", scope, session=session)

    async def _session_holds(self, session: Session) -> Scope | None:
        """What its user may do; None: it is over."""
        if not self._sessions.is_open(session):
            return None
        user = await self._credentials.user(session.user, session.generation)
        return None if user is None else user.scope

    def _limited(self, what: str, wait_s: float) -> ProblemError:
        self.refused["http_limited"] += 1
        seconds = max(1, ceil(wait_s))
        text = f"{what}; try again in {seconds} s"
        return ProblemError("too_many_requests", text, headers={"Retry-After": str(seconds)})

    # ---- the session ------------------------------------------------------------------------------------------------

    async def who(self, request: web.Request) -> SessionView:
        """GET /session.  Credentials that are not valid are those of nobody."""
        if not self.required:
            return SessionView("off", None, covered_by("admin"), None)
        identity = await self._identity(request)
        if identity is None:
            return SessionView("required", None, [], None)
        if identity.session is None:
            return SessionView("required", None, covered_by(identity.scope), None)
        return self._view(identity.session, identity.scope)

    async def log_in(self, request: web.Request, body: LoginBody) -> tuple[SessionView, str]:
        """POST /session: who they are now, and what the cookie is to hold."""
        if not self.required:
            raise ProblemError("conflict", "there is no login on loopback: everything is allowed")
        self._check_site(request)
        now_s = self._now_s()
        if wait_s := self._logins_by_address.take(address_key(request.remote), now_s):
            raise self._limited("too many logins from this address", wait_s)
        # A name that can't be a user's is counted with all others like it: what was typed may be as long as a body.
        name = body.user if is_name(body.user) else ""
        if wait_s := self._logins_by_user.take(name, now_s):
            raise self._limited("too many logins of this user", wait_s)
        if len(body.password.encode("utf-8", "surrogatepass")) > PASSWORD_BYTES_MAX:
            raise self._login_failed(request)
        async with self._credentials.connection() as conn:
            user = await find_password(conn, name)
        password_hash = await self._passwords.verify(body.password, None if user is None else user.password_hash)
        if user is None or password_hash is None:
            raise self._login_failed(request)
        session, cookie = self._sessions.begin(user.name, user.generation)
        async with self._credentials.connection() as conn:
            await note_login(conn, user, password_hash)
        await self._credentials.look_again()
        self._logins_by_user.forgive(name)
        return self._view(session, user.scope), cookie

    async def log_out(self, request: web.Request) -> None:
        """DELETE /session, whether there is one or not."""
        if not self.required:
            return
        if (identity := await self._by_session(request)) is not None and identity.session is not None:
            self._check_csrf(request, identity)
            self._sessions.end(identity.session)

    def give_cookie(self, answer: web.StreamResponse, cookie: str) -> None:
        answer.set_cookie(
            self._cookie, cookie, max_age=SESSION_S, path="/", httponly=True, samesite="Strict", secure=self._secure
        )

    def take_cookie(self, answer: web.StreamResponse) -> None:
        answer.del_cookie(self._cookie, path="/", httponly=True, samesite="Strict", secure=self._secure)

    def _view(self, session: Session, scope: Scope) -> SessionView:
        return SessionView("required", session.user, covered_by(scope), self._sessions.csrf_token(session))

    def _login_failed(self, request: web.Request) -> ProblemError:
        """The same whatever was wrong."""
        self.refused["http_unauthenticated"] += 1
        logger.info("a login from %s failed", request.remote)
        return ProblemError("unauthenticated", "user or password is wrong")
