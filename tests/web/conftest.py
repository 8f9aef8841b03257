"""A real coordinator with its HTTP server on a real database, and a worker that plays along."""

import asyncio
import contextlib
import io
from types import SimpleNamespace

import aiohttp
import asyncpg
import orjson
import pytest

from tests.coordinator_shell.test_coordinator_service import Served


class Client:
    """Requests to the API; answers come decoded: status, headers, body."""

    def __init__(self, session, base):
        self.session = session
        self.base = base

    async def __call__(self, method, path, body=None, headers=None, **options):
        data = options.pop("data", None)
        headers = dict(headers or {})
        if body is not None:
            data = orjson.dumps(body)
            headers.setdefault("Content-Type", "application/json")
        if isinstance(data, bytes) and len(data) > 1 << 20:
            data = io.BytesIO(data)
        url = self.base + path if path.startswith("/") else path
        async with self.session.request(method, url, data=data, headers=headers, **options) as answer:
            raw = await answer.read()
            is_json = "json" in answer.content_type
            return SimpleNamespace(
                status=answer.status,
                headers=answer.headers,
                type=answer.content_type,
                body=orjson.loads(raw) if is_json and raw else raw,
            )

    def get(self, path, **options):
        return self("GET", path, **options)

    def post(self, path, body=None, **options):
        return self("POST", path, body, **options)

    def patch(self, path, body, **options):
        return self("PATCH", path, body, **options)

    def delete(self, path, **options):
        return self("DELETE", path, **options)


def problem(answer, status, code, *fields):
    """An answer is this problem, and names these fields."""
    assert (answer.status, answer.type) == (status, "application/problem+json"), answer
    body = answer.body
    assert (body["code"], body["status"], body["type"]) == (code, status, f"urn:ringpoll:problem:{code}"), body
    assert body["title"]
    assert body["detail"]
    assert [each["field"] for each in body["errors"]] == list(fields), body["errors"]
    return body


@pytest.fixture
async def coordinators(tmp_path):
    """Makes coordinators that run in this loop, each with a directory of its own."""
    made = []

    async def make(url, *, worker=True):
        directory = tmp_path / str(len(made))
        directory.mkdir()
        made.append(Served(directory, url).start())
        await made[-1].loaded()
        if worker:
            made[-1].worker = await made[-1].running_with_worker()
        return made[-1]

    yield make
    for each in made:
        with contextlib.suppress(asyncio.CancelledError):
            await each.stop()


@pytest.fixture
async def coordinator(coordinators, database_url):
    return await coordinators(database_url)


@pytest.fixture
async def session():
    async with aiohttp.ClientSession() as made:
        yield made


@pytest.fixture
def api(coordinator, session):
    return Client(session, f"http://{coordinator.settings.http}/api/v1")


@pytest.fixture
async def sql(database_url):
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()
