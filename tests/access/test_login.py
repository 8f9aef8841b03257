"""Logging in and out on the page, and what a browser is told."""

import asyncio
import logging
import statistics
import time

import pytest

from cluster import database
from cluster.access import users
from cluster.access.rate_limit import RateLimit
from coordinator.web import access as access_module
from tests.access.serving import PASSWORD, ServedCluster, client, fill
from tests.coordinator_shell.waiting import until

SESSION = "/api/v1/session"
NOBODY = {"auth": "required", "user": None, "scopes": [], "csrf_token": None}


@pytest.fixture
async def served(tmp_path, database_url):
    made = ServedCluster(tmp_path, database_url)
    made.tokens = await fill(database_url)
    await made.start()
    await made.loaded()
    yield made
    await made.stop()


async def log_in(http, served, user="u-write", password=PASSWORD, **headers):
    body = {"user": user, "password": password}
    async with http.post(served.url + SESSION, json=body, headers=headers) as answer:
        return answer, await answer.json()


def cookie_of(answer):
    return {"Cookie": answer.headers["Set-Cookie"].partition(";")[0]}


async def get(http, served, path=SESSION, **headers):
    async with http.get(served.url + path, headers=headers) as answer:
        return answer.status, await answer.json()


async def test_from_login_to_logout(served):
    async with client() as http:
        assert await get(http, served) == (200, NOBODY)
        answer, view = await log_in(http, served)
        assert answer.status == 200
        assert (view["auth"], view["user"], view["scopes"]) == ("required", "u-write", ["read", "write"])
        assert answer.headers["Cache-Control"] == "no-store"
        session = cookie_of(answer)
        assert await get(http, served, **session) == (200, view)
        assert (await get(http, served, "/status", **session))[0] == 200
        changing = session | {"X-CSRF-Token": view["csrf_token"]}
        async with http.post(
            served.url + "/api/v1/projects", json={"url": "http://h.example/"}, headers=changing
        ) as made:
            assert made.status == 201
        async with http.delete(served.url + SESSION, headers=session) as refused:
            assert refused.status == 403
        async with http.delete(served.url + SESSION, headers=changing) as ended:
            assert ended.status == 204
            assert "Max-Age=0" in ended.headers["Set-Cookie"]
        assert await get(http, served, **session) == (200, NOBODY)
        assert (await get(http, served, "/status", **session))[0] == 401
        async with http.delete(served.url + SESSION) as again:
            assert again.status == 204


async def test_the_audit_log_names_who_it_was(served):
    async with client() as http:
        answer, view = await log_in(http, served)
        changing = cookie_of(answer) | {"X-CSRF-Token": view["csrf_token"]}
        async with http.post(
            served.url + "/api/v1/projects", json={"url": "http://h.example/"}, headers=changing
        ) as made:
            assert made.status == 201
        admin = {"Authorization": f"Bearer {served.tokens['admin']}"}
        status, page = await get(http, served, "/api/v1/audit-log?limit=1", **admin)
        assert status == 200
        (item,) = page["items"]
        assert (item["actor"], item["address"]) == ("user:u-write", "127.0.0.1")
        _, rest = await get(http, served, f"/api/v1/audit-log?cursor={page['next_cursor']}", **admin)
        assert {each["actor"] for each in rest["items"]} == {"cli:test"}
        _, mine = await get(http, served, "/api/v1/audit-log?actor=user:u-write", **admin)
        assert ([each["id"] for each in mine["items"]], mine["next_cursor"]) == ([item["id"]], None)
        for wrong in ("limit=0", "limit=501", "cursor=x", "nonsense=1"):
            assert (await get(http, served, f"/api/v1/audit-log?{wrong}", **admin))[0] == 422


@pytest.mark.parametrize(
    ("user", "password"),
    [
        ("u-write", "wrong password"), ("u-write", ""), ("nobody", PASSWORD), ("", PASSWORD), ("u-write\0", PASSWORD),
        ("U-WRITE", PASSWORD), ("u-write", PASSWORD + "\0"), ("u-write", "\ud800" * 3),
        ("u-write", "\u00e4" * 1_000), ("' OR 1=1 --", PASSWORD),
    ],
)  # fmt: skip
async def test_every_wrong_login_is_answered_alike(served, caplog, user, password):
    caplog.set_level(logging.DEBUG)
    async with client() as http:
        body = b'{"user": %s, "password": %s}' % tuple(_json(each) for each in (user, password))
        async with http.post(served.url + SESSION, data=body, headers={"Content-Type": "application/json"}) as answer:
            said = await answer.json()
            if "\\ud800" in body.decode():  # no text at all
                assert answer.status in {400, 422}
            else:
                assert (answer.status, said["code"], said["detail"]) == (
                    401, "unauthenticated", "user or password is wrong",
                )  # fmt: skip
            assert "Set-Cookie" not in answer.headers
    if password:
        assert password not in caplog.text
    assert "u-write" not in caplog.text


def _json(text):
    import json  # noqa: PLC0415

    return json.dumps(text).encode()


async def test_an_unknown_user_takes_as_long_as_a_known_one(served):
    """Both compute one argon2id hash, which is nearly all of the time."""
    served.without_limits()
    took = {"u-write": [], "nobody": []}
    slow = users.Passwords(time_cost=4, memory_kib=16 << 10)
    served.access._passwords.close()
    served.access._passwords = slow
    conn = await database.connect(served.settings.database_url)
    await users.set_password(conn, "u-write", slow.hash_password(PASSWORD), actor="cli:test")
    await conn.close()
    async with client() as http:
        await log_in(http, served, "nobody", "wrong password")
        for _ in range(7):
            for user, times in took.items():
                began = time.perf_counter()
                answer, _ = await log_in(http, served, user, "wrong password")
                times.append(time.perf_counter() - began)
                assert answer.status == 401
    known, unknown = (statistics.median(times) for times in took.values())
    assert 0.5 < known / unknown < 2, took


async def test_bodies_of_another_kind(served):
    async with client() as http:
        for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
            async with http.post(
                served.url + SESSION, data=b'{"user":"u-write","password":"x"}', headers={"Content-Type": content_type}
            ) as answer:
                assert answer.status == 415
        for body in ({}, {"user": "u-write"}, {"user": 1, "password": "x"}, {"user": "a", "password": "b", "c": 1}):
            async with http.post(served.url + SESSION, json=body) as answer:
                assert answer.status == 422


async def test_a_login_from_another_site_is_refused(served):
    async with client() as http:
        for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}):
            answer, said = await log_in(http, served, **headers)
            assert (answer.status, said["code"]) == (403, "cross_site")
        answer, _ = await log_in(http, served, Origin=f"https://{served.settings.http}")
        assert answer.status == 200


# ---- the end of sessions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["password", "removal", "removal and return"])
async def test_a_session_ends_with_its_users_password(served, change):
    served.access._credentials._fresh_s = 0.05
    async with client() as http:
        answer, _ = await log_in(http, served)
        session = cookie_of(answer)
        assert (await get(http, served, "/status", **session))[0] == 200
        conn = await database.connect(served.settings.database_url)
        if change == "password":
            await users.set_password(conn, "u-write", "x", actor="cli:test")
        else:
            row = await users.find_password(conn, "u-write")
            await users.remove(conn, "u-write", actor="cli:test")
            if change == "removal and return":
                await users.add(conn, "u-write", row.password_hash, "write", actor="cli:test")
        await conn.close()

        async def is_over():
            return (await get(http, served, "/status", **session))[0] == 401

        await until(is_over, what="the end of the session")


async def test_sessions_outlive_a_restart(served):
    async with client() as http:
        answer, view = await log_in(http, served)
        await served.stop()
        await served.start()
        await served.loaded()
        assert await get(http, served, **cookie_of(answer)) == (200, view)


# ---- limits ---------------------------------------------------------------------------------------------------------


async def statuses(http, served, count, user, password="wrong password"):
    return [(await log_in(http, served, user, password))[0].status for _ in range(count)]


async def test_logins_of_a_user_are_limited_whether_there_is_one_or_not(served):
    async with client() as http:
        for user in ("u-write", "nobody"):
            assert await statuses(http, served, 12, user) == [401] * 10 + [429] * 2
        answer, said = await log_in(http, served)
        assert (answer.status, said["code"]) == (429, "too_many_requests")
        assert 1 <= int(answer.headers["Retry-After"]) <= 30
        assert (await log_in(http, served, "u-read"))[0].status == 200
        assert served.access.refused["http_limited"] == 5


async def test_logins_from_an_address_are_limited(served):
    served.access._logins_by_address = RateLimit(burst=5, per_s=1 / 60)
    async with client() as http:
        assert await statuses(http, served, 3, "a") + await statuses(http, served, 3, "b") == [401] * 5 + [429]
        assert (await log_in(http, served))[0].status == 429


async def test_a_good_login_forgives_the_bad_ones_of_its_user(served):
    async with client() as http:
        for _ in range(3):
            assert await statuses(http, served, 9, "u-write") == [401] * 9
            assert (await log_in(http, served))[0].status == 200


async def test_a_right_token_works_among_wrong_ones(served):
    served.access._wrong_tokens = RateLimit(burst=5, per_s=1 / 60)
    wrong = {"Authorization": "Bearer rp_" + "0" * 12 + "_" + "0" * 64}
    right = {"Authorization": f"Bearer {served.tokens['read']}"}
    async with client() as http:
        got = [(await get(http, served, "/status", **wrong))[0] for _ in range(8)]
        assert got == [401] * 5 + [429] * 3
        async with http.get(served.url + "/status", headers=wrong) as answer:
            assert int(answer.headers["Retry-After"]) >= 1
        assert (await get(http, served, "/status", **right))[0] == 200


async def test_wrong_tokens_cost_no_queries(served):
    served.without_limits()
    async with client() as http:
        await get(http, served, "/status", Authorization="Bearer rp_" + "0" * 12 + "_" + "0" * 64)
        before, began = served.access._credentials.reads, time.monotonic()
        for number in range(300):
            token = f"rp_{number:012x}_" + "0" * 64
            assert (await get(http, served, "/status", Authorization=f"Bearer {token}"))[0] == 401
        assert served.access._credentials.reads - before <= 2 + time.monotonic() - began


async def test_too_many_logins_at_once(served, monkeypatch):
    served.without_limits()
    monkeypatch.setattr(users, "WAITING_MAX", 2)
    slow = users.Passwords(time_cost=3, memory_kib=32 << 10)
    served.access._passwords.close()
    served.access._passwords = slow
    async with client() as http:
        got = [
            (answer.status, said.get("code"))
            for answer, said in await asyncio.gather(*(log_in(http, served, "nobody") for _ in range(20)))
        ]
    assert set(got) == {(401, "unauthenticated"), (503, "busy")}


# ---- what a browser is told -----------------------------------------------------------------------------------------


async def test_the_cookie_is_for_this_site_alone(served):
    async with client() as http:
        answer, _ = await log_in(http, served)
        name, *attributes = [each.strip() for each in answer.headers["Set-Cookie"].split(";")]
        assert name.startswith("__Host-ringpoll=")
        assert {each.lower() for each in attributes} == {
            "httponly", "path=/", "samesite=strict", "secure", "max-age=43200",
        }  # fmt: skip


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/status", "/nothing", "/api/v1/nothing", SESSION])
async def test_every_answer_keeps_a_browser_safe(served, path):
    async with client() as http, http.get(served.url + path) as answer:
        headers = answer.headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["X-Frame-Options"] == "DENY"
        assert "Access-Control-Allow-Origin" not in headers
        assert "Strict-Transport-Security" not in headers  # the proxy's to say


async def test_on_loopback_there_is_no_login(tmp_path, database_url):
    served = await ServedCluster(tmp_path, database_url, behind_tls=False).start()
    try:
        async with client() as http:
            everything = {"auth": "off", "user": None, "scopes": ["read", "write", "admin"], "csrf_token": None}
            assert await get(http, served) == (200, everything)
            assert (await log_in(http, served))[0].status == 409
            async with http.delete(served.url + SESSION) as answer:
                assert answer.status == 204
        assert not served.access._sessions.path.exists()
    finally:
        await served.stop()


async def test_in_the_clear_beyond_loopback_it_warns_and_the_cookie_is_not_secure(tmp_path, database_url, caplog):
    """The address served is loopback all the same; what is configured decides."""
    served = ServedCluster(tmp_path, database_url, behind_tls=False)
    await fill(database_url)
    await served.start()
    await served.loaded()
    try:
        import msgspec  # noqa: PLC0415

        beyond = msgspec.structs.replace(served.settings, http="0.0.0.0:8700")
        made = access_module.Access(beyond, served.access._credentials)
        assert "is beyond loopback and not encrypted" in caplog.text
        assert made.required
        assert (made._cookie, made._secure) == ("ringpoll_session", False)
        made._passwords.close()
    finally:
        await served.stop()


async def test_a_stream_of_events_ends_with_its_token(served):
    served.access._credentials._fresh_s = 0.05
    events = served.url + "/api/v1/events"
    async with client() as http:
        async with http.get(events) as answer:
            assert answer.status == 401
        async with http.get(events, headers={"Authorization": f"Bearer {served.tokens['read']}"}) as answer:
            assert answer.status == 200
            assert b"retry" in await answer.content.readline()
            conn = await database.connect(served.settings.database_url)
            await conn.execute("UPDATE api_tokens SET revoked_at = now()")
            await conn.close()
            async with asyncio.timeout(20):
                while await answer.content.readline():
                    pass


async def test_an_answer_that_goes_on_ends_with_its_credentials(served):
    """What a stream of events asks each second."""
    credentials = served.access._credentials
    credentials._fresh_s = 0.05
    async with client() as http:
        answer, _ = await log_in(http, served)
        assert answer.status == 200
    conn = await database.connect(served.settings.database_url)
    generation = await conn.fetchval("SELECT generation FROM users WHERE name = 'u-write'")
    token_id = served.tokens["read"].split("_")[1]
    session, _ = served.access._sessions.begin("u-write", generation)
    by_token = {access_module.IDENTITY: access_module.Identity("token:t-read", "read", token_id=token_id)}
    by_session = {access_module.IDENTITY: access_module.Identity("user:u-write", "write", session=session)}
    assert await served.access.still_allowed(by_token)
    assert await served.access.still_allowed(by_session)
    await conn.execute("UPDATE api_tokens SET revoked_at = now()")
    await users.set_password(conn, "u-write", "x", actor="cli:test")
    await conn.close()
    for request in (by_token, by_session):

        async def is_over(request=request):
            return not await served.access.still_allowed(request)

        await until(is_over, what="the end")
