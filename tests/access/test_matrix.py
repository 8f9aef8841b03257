"""Every route of the table with every kind of credentials, against the server that runs in production.

The routes are those of ``ROUTES``, so a new one can't be forgotten; what a route asks for is the one thing taken from
there.  Let in is whatever isn't answered 401 or 403: a made-up id or an empty body may well be wrong.
"""

import asyncio
import re

import pytest

from cluster.access.scopes import SCOPES, covers
from coordinator.web import routes
from coordinator.web.routes import ROUTES
from tests.access.serving import PATH_VALUES, ServedCluster, client, fill, forged_cookies, forged_tokens, generations

LET_IN, UNKNOWN, REFUSED = "let in", "401", "403"
UNSAFE = {"POST", "PATCH", "DELETE", "PUT"}
SESSION = "/api/v1/session"


@pytest.fixture
async def served(tmp_path, database_url):
    made = ServedCluster(tmp_path, database_url)
    made.tokens = await fill(database_url)
    made.generations = await generations(database_url)
    await made.start()
    made.without_limits()
    await made.loaded()
    yield made
    await made.stop()


@pytest.fixture
async def local(tmp_path, database_url):
    made = await ServedCluster(tmp_path, database_url, behind_tls=False).start()
    await made.loaded()
    yield made
    await made.stop()


class Matrix:
    """Sends requests and keeps what was answered otherwise than expected."""

    def __init__(self, served):
        self._served = served
        self.wrong = []
        self.sent = 0
        self.bodies = []

    async def send(self, http, route, headers, kind, expected):
        methods = (route.method, "HEAD") if route.method == "GET" else (route.method,)
        for method in methods:
            got, code = await self._answer(http, method, route, headers)
            self.sent += 1
            if got != expected:
                self.wrong.append(f"{method} {route.path} ({route.scope}) with {kind}: {got} {code}, not {expected}")

    async def _answer(self, http, method, route, headers):
        path = route.path.format(**PATH_VALUES)
        body = (
            {"data": b"{}", "headers": {"Content-Type": "application/json", **headers}}
            if method in UNSAFE
            else {"headers": headers}
        )
        async with http.request(method, self._served.url + path, allow_redirects=False, **body) as answer:
            if "text/event-stream" not in answer.headers.get("Content-Type", ""):
                self.bodies.append(await answer.text())
            self.bodies.append(str(answer.headers))
            if answer.status == 401:
                assert answer.headers["WWW-Authenticate"].startswith("Bearer ")
            return {401: UNKNOWN, 403: REFUSED}.get(answer.status, LET_IN), answer.status


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


def session_of(served, scope):
    """Headers of a new session of a user with that scope: without and with its CSRF token."""
    user = f"u-{scope}"
    session, cookie = served.access._sessions.begin(user, served.generations[user])
    plain = {"Cookie": f"__Host-ringpoll={cookie}"}
    return plain, plain | {"X-CSRF-Token": served.access._sessions.csrf_token(session)}


async def test_every_route_with_every_kind_of_credentials(served, caplog):
    caplog.set_level("DEBUG")
    matrix = Matrix(served)
    async with client() as http:
        for route in ROUTES:
            is_open = route.scope == "none"
            unsafe = route.method in UNSAFE
            without = LET_IN if is_open else UNKNOWN
            await matrix.send(http, route, {}, "nothing", without)
            for kind in ("expired", "revoked"):
                await matrix.send(http, route, bearer(served.tokens[kind]), kind, without)
            for kind, token in forged_tokens(served.tokens).items():
                await matrix.send(http, route, bearer(token), f"a forged token: {kind}", without)
            for kind, cookie in forged_cookies(served, served.generations["u-admin"]).items():
                headers = {"Cookie": f"__Host-ringpoll={cookie}", "X-CSRF-Token": "0" * 64}
                await matrix.send(http, route, headers, f"a forged session: {kind}", without)
            admin = served.tokens["admin"]
            others = {
                "another scheme": {"Authorization": f"Basic {admin}"},
                "no scheme": {"Authorization": admin},
                "a header of its own": {"X-API-Key": admin, "Token": admin},
                "a token as a cookie": {"Cookie": f"__Host-ringpoll={admin}"},
                "a session as a token": bearer(session_of(served, "admin")[0]["Cookie"].partition("=")[2]),
                "a cookie of another name": {
                    "Cookie": session_of(served, "admin")[0]["Cookie"].replace("__Host-ringpoll", "ringpoll_session")
                },
            }
            for kind, headers in others.items():
                await matrix.send(http, route, headers, kind, without)
            for scope in SCOPES:
                by_scope = LET_IN if covers(scope, route.scope) else REFUSED
                await matrix.send(http, route, bearer(served.tokens[scope]), f"a token to {scope}", by_scope)
                # What is open looks at no credentials, but a log-out ends a session and so wants to be sure of it.
                protected = unsafe and (not is_open or (route.method, route.path) == ("DELETE", SESSION))
                plain, whole = session_of(served, scope)
                foreign = plain | {"X-CSRF-Token": session_of(served, scope)[1]["X-CSRF-Token"]}
                spoilt = REFUSED if protected else by_scope
                await matrix.send(http, route, plain, f"a session to {scope} without CSRF token", spoilt)
                await matrix.send(http, route, foreign, f"a session to {scope} with another's CSRF token", spoilt)
                elsewhere = whole | {"Origin": "https://evil.example"}
                if (route.method, route.path) != ("POST", SESSION):
                    await matrix.send(http, route, elsewhere, f"a session to {scope} from another site", spoilt)
                await matrix.send(http, route, whole, f"a session to {scope}", by_scope)
    assert matrix.wrong == []
    assert matrix.sent > 50 * len(ROUTES)
    secrets = [token.rpartition("_")[2] for token in served.tokens.values()]
    secrets += [served.access._sessions._key.hex(), str(served.access._sessions._key)]
    for text in (*matrix.bodies, caplog.text):
        assert not [each for each in secrets if each in text]


async def test_on_loopback_everything_is_open_to_this_machine_only(local):
    matrix = Matrix(local)
    port = local.settings.http.rpartition(":")[2]
    async with client() as http:
        for route in ROUTES:
            unsafe = route.method in UNSAFE
            await matrix.send(http, route, {}, "nothing", LET_IN)
            await matrix.send(http, route, bearer("nonsense"), "a token that nobody looks at", LET_IN)
            own = {"Origin": local.url, "Sec-Fetch-Site": "same-origin"}
            await matrix.send(http, route, own, "a page of ours", LET_IN)
            name = {"Host": f"localhost:{port}", "Origin": f"http://localhost:{port}"}
            await matrix.send(http, route, name, "a page of ours by name", LET_IN)
            for host in ("evil.example", f"evil.example:{port}", "10.0.0.1"):
                rebound = {"Host": host, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
                await matrix.send(http, route, rebound, f"DNS rebinding by {host}", REFUSED)
            for kind, headers in {
                "another site": {"Origin": "https://evil.example"},
                "another site, as the browser says": {"Origin": local.url, "Sec-Fetch-Site": "cross-site"},
                "another port of this machine": {"Origin": "http://127.0.0.1:1", "Sec-Fetch-Site": "same-site"},
                "a sandboxed frame": {"Origin": "null"},
            }.items():
                await matrix.send(http, route, headers, kind, REFUSED if unsafe else LET_IN)
    assert matrix.wrong == []


async def test_every_route_of_the_server_has_a_scope(served):
    """What is registered beside the table is the page's own files."""
    app = served.service.server._runner.app
    places = {(route.method, route.resource.canonical) for route in app.router.routes() if route.resource is not None}
    known = {(route.method, route.path) for route in ROUTES}
    known |= {("HEAD", path) for method, path in known if method == "GET"}
    beside = places - known
    assert all(path == "/" or path.startswith("/static/") for _, path in beside), beside
    assert {method for method, _ in beside} <= {"GET", "HEAD"}
    assert known <= places


async def test_a_route_that_nobody_gave_a_scope_is_the_admins(served, monkeypatch):
    monkeypatch.setattr(routes, "_BY_PLACE", {})
    async with client() as http:
        for scope, status in (("read", 403), ("write", 403), ("admin", 200)):
            async with http.get(served.url + "/status", headers=bearer(served.tokens[scope])) as answer:
                assert answer.status == status
        async with http.get(served.url + "/healthz") as answer:
            assert answer.status == 401


async def test_nothing_is_said_of_why_credentials_are_wrong(served):
    """The same answer for a token of nobody, a revoked one, and one with a wrong secret."""
    said = set()
    async with client() as http:
        kinds = [served.tokens["expired"], served.tokens["revoked"], *forged_tokens(served.tokens).values()]
        for token in kinds:
            async with http.get(served.url + "/api/v1/workers", headers=bearer(token)) as answer:
                headers = {name: value for name, value in answer.headers.items() if name != "Date"}
                said.add((answer.status, await answer.text(), str(sorted(headers.items()))))
    assert len(said) == 1
    assert re.search("needs a valid token", str(said))


async def test_secrets_are_the_admins(served):
    async with client() as http:
        written = {"url": "http://h.example/", "bearer_token": "c4nary"}
        async with http.post(
            served.url + "/api/v1/projects", json=written, headers=bearer(served.tokens["write"])
        ) as answer:
            assert answer.status == 201
            assert "c4nary" not in await answer.text()
            place = answer.headers["Location"]
        for scope, status in (("read", 403), ("write", 403), ("admin", 200)):
            async with http.get(served.url + place + "?reveal=true", headers=bearer(served.tokens[scope])) as answer:
                assert answer.status == status
                assert ("c4nary" in await answer.text()) == (scope == "admin")
            async with http.get(served.url + place, headers=bearer(served.tokens[scope])) as answer:
                assert answer.status == 200
                assert "c4nary" not in await answer.text()


SECRETS = {"url": "http://h.example/a", "bearer_token": "c4nary", "headers": {"X-Api-Key": "c4nary", "Accept": "*/*"}}
ELSEWHERE = [
    {"url": "http://evil.example/a"},
    {"url": "https://h.example/a"},
    {"url": "http://h.example:81/a"},
    {"url": "http://evil.example/", "bearer_token": "new"},  # and X-Api-Key as it was
    {"url": "http://evil.example/", "bearer_token": None, "headers": {"Accept": None}},
    {"proxy": "http://evil.example:3128"},
    {"url": "http://h.example/b", "verify_tls": False},
]
OWN = [
    {"url": "http://h.example/b"},
    {"name": "new", "headers": {"Accept": "text/html"}},
    {"url": "http://other.example/", "bearer_token": "new", "headers": {"x-api-key": "new", "X-Api-Key": None}},
    {"url": "http://third.example/", "bearer_token": None, "headers": None},
]


async def test_secrets_can_not_be_sent_elsewhere_by_who_may_not_see_them(served):
    async with client() as http:
        api, write = served.url + "/api/v1/projects", bearer(served.tokens["write"])
        async with http.post(api, json=SECRETS, headers=write) as answer:
            place = served.url + answer.headers["Location"]
        for patch in ELSEWHERE:
            async with http.patch(place, json=patch, headers=write) as answer:
                body = await answer.json(content_type=None)
                assert (answer.status, body["code"]) == (403, "forbidden"), patch
                assert "c4nary" not in str(body)
        for patch in OWN:
            async with http.patch(place, json=patch, headers=write) as answer:
                assert answer.status == 200, (patch, await answer.text())
        async with http.post(api, json=SECRETS, headers=write) as answer:
            place = served.url + answer.headers["Location"]
        async with http.patch(place, json=ELSEWHERE[0], headers=bearer(served.tokens["admin"])) as answer:
            assert answer.status == 200


async def test_an_unknown_path_or_method_says_nothing_else(served):
    async with client() as http:
        for method, path, status in (
            ("GET", "/api/v1/nothing", 404),
            ("PUT", "/status", 405),
            ("GET", "/status/", 404),
        ):
            async with http.request(method, served.url + path) as answer:
                assert answer.status == status


async def test_the_scopes_are_what_was_agreed():
    """So that a mistake in the table itself is seen."""
    scopes = {(route.method, route.path): route.scope for route in ROUTES}
    for (method, path), scope in scopes.items():
        if path in {"/healthz", "/readyz", "/", SESSION, "/api/v1/openapi.json"} or path.startswith("/api/v1/docs"):
            assert scope == "none", path
        elif (
            path in {"/api/v1/audit-log", "/api/v1/reload"}
            or path.endswith("/drain")
            or (method, path) == ("POST", "/api/v1/scale")
        ):
            assert scope == "admin", path
        elif method == "GET":
            assert scope == "read", path
        else:
            assert scope == "write", path


async def test_many_requests_cost_few_queries(served):
    async with client() as http:

        async def ask():
            async with http.get(served.url + "/api/v1/scale", headers=bearer(served.tokens["read"])) as answer:
                assert answer.status == 200

        await ask()
        before = served.access._credentials.reads
        for _ in range(20):
            await asyncio.gather(*(ask() for _ in range(20)))
        assert served.access._credentials.reads - before <= 3
