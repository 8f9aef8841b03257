"""Every operation of the API, with data that fits its description and data that does not, against a real coordinator.

The coordinator runs in a thread of its own, on a real database, with a worker that plays along.  What is sent is made
from the OpenAPI document by schemathesis; each answer is held against it.  ``API_EXAMPLES`` is how many requests are
made up for each operation, beside the ones at the bounds of each field.
"""

import asyncio
import os
import tempfile
import threading
import uuid
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import ignored_auth

from coordinator.web.openapi import openapi_document
from coordinator.web.routes import ROUTES
from tests.conftest import execute_once, run_apart, with_database
from tests.coordinator_shell.test_coordinator_service import Served

EXAMPLES = int(os.environ.get("API_EXAMPLES", "15"))
STREAMS = ["streamEvents"]  # which never end

config = schemathesis.Config()
config.projects.default.generation.update(modes=list(GenerationMode), max_examples=EXAMPLES)
# The rules of projects and cursors are more than a schema can say: 422 is an answer to what fits it, too.
config.projects.default.checks.positive_data_acceptance.expected_statuses.append("422")
schema = schemathesis.openapi.from_dict(openapi_document(ROUTES), config=config).exclude(operation_id=STREAMS)


class ServedApart:
    """In a loop and a thread of its own."""

    def __init__(self, directory, url):
        self._directory = directory
        self._url = url
        self._loop = asyncio.new_event_loop()
        self._served = None
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    def start(self):
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(60)
        return f"http://{self._served.settings.http}"

    async def _start(self):
        self._served = Served(self._directory, self._url).start()
        await self._served.loaded()
        await self._served.running_with_worker()

    def stop(self):
        asyncio.run_coroutine_threadsafe(self._served.stop(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)


@pytest.fixture(scope="module")
def base_url(postgres_url, template_database):
    name = f"ringpoll_{uuid.uuid4().hex[:12]}"
    run_apart(lambda: execute_once(postgres_url, f"CREATE DATABASE {name} TEMPLATE {template_database}"))
    with tempfile.TemporaryDirectory() as directory:
        served = ServedApart(Path(directory), with_database(postgres_url, name))
        try:
            yield served.start()
        finally:
            served.stop()
            run_apart(lambda: execute_once(postgres_url, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
)
def test_each_answer_is_as_described(case, base_url):
    # without authentication on loopback; who may do what is tested in tests/access
    case.call_and_validate(base_url=base_url, excluded_checks=[ignored_auth], timeout=30)
