"""A real Chromium and a real cluster, each once for all tests here; a page of its own for each test.

Where no Chromium is found the tests are left out, and the run says so.  With REQUIRE_BROWSER=1 they fail instead.

A page that a test opened is held to account at its end: nothing on the console, no request that failed, but what the
test says it expects.
"""

import asyncio
import contextlib
import json
import os
import re
import shutil
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Error as PlaywrightError
from playwright.async_api import async_playwright

from tests.conftest import _fresh_database, execute_once, run_apart
from tests.integration.harness import Cluster
from tests.integration.target import Target

BROWSERS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
LOCALE = "en-GB"
TIME_ZONE = "Europe/Berlin"  # not UTC, so that what is shown in the viewer's zone differs
HEIGHTS = {390: 844, 1400: 900}
DEADLINE_MS = 15_000
POLL_S = 0.05

CANARY = '<img src=x onerror="document.title=1"><script>document.title=2</script>&amp;\'"'


def chromium():
    """The path of a Chromium; else the test is left out, or fails where one is required."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        text = "left out: no Chromium was found (apt-get install chromium); the page was not tested in a browser"
        if os.environ.get("REQUIRE_BROWSER") == "1":
            pytest.fail(text)
        pytest.skip(text)
    return found


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def browser():
    path = chromium()
    async with async_playwright() as playwright:
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = await playwright.chromium.launch(executable_path=path, args=[*options, "--disable-dev-shm-usage"])
        yield browser
        await browser.close()


@pytest.fixture(scope="package")
def package_database_url(postgres_url, template_database):
    yield from _fresh_database(postgres_url, template_database)


@pytest.fixture(scope="package")
def target():
    with Target() as running:
        yield running


@pytest.fixture(scope="package")
def cluster(package_database_url, target):
    """Two workers, and projects of each kind; tests add and change their own."""
    chromium()
    seed = [
        *((f"steady {number}", target.url(f"/ok/steady{number}"), 2, True, "200") for number in range(6)),
        ("broken", target.url("/status/503/broken"), 2, True, "200"),
        ("paused", target.url("/ok/paused"), 60, False, "200"),
        (CANARY, target.url("/ok/canary?<script>").replace("<", "%3C").replace(">", "%3E"), 2, True, "200"),
    ]
    values = ", ".join(
        f"({quoted(name)}, {quoted(url)}, {interval}, {enabled}, {quoted(expected)})"
        for name, url, interval, enabled, expected in seed
    )
    insert = f"INSERT INTO projects (name, url, interval, enabled, expected_status) VALUES {values}"
    run_apart(lambda: execute_once(package_database_url, insert))
    base = Path(tempfile.mkdtemp(prefix="rp-"))
    running = Cluster(base / "d", package_database_url, workers=2)
    try:
        running.start()
        running.wait_ready()
        yield running
    finally:
        running.end()
        shutil.rmtree(base, ignore_errors=True)


def quoted(text):
    return "'" + text.replace("'", "''") + "'"


class Watched:
    """A page and what went wrong on it."""

    def __init__(self, page, base):
        self.page = page
        self.base = base
        self.wrong = []
        self.expected = []  # regular expressions of what a test provokes
        page.set_default_timeout(DEADLINE_MS)
        page.on("console", self._note_console)
        page.on("pageerror", lambda error: self.wrong.append(f"page error: {error}"))
        page.on("requestfailed", self._note_failed)
        page.on("response", lambda answer: answer.status >= 400 and self.wrong.append(f"{answer.status} {answer.url}"))

    def _note_console(self, message):
        if message.type in {"error", "warning"}:
            self.wrong.append(f"console: {message.text} {message.location.get('url', '')}")

    def _note_failed(self, request):
        # What a view asked for when it was left is called off: that is meant.
        if request.failure != "net::ERR_ABORTED":
            self.wrong.append(f"{request.failure} {request.url}")

    def expect(self, *patterns):
        self.expected += patterns

    def complaints(self):
        return [each for each in self.wrong if not any(re.search(pattern, each) for pattern in self.expected)]

    async def open(self, place=""):
        await self.page.goto(f"{self.base}/#{place}")
        try:
            await self.page.locator("main h1").wait_for()
        except PlaywrightError as error:
            raise AssertionError(f"no view at {place}: {self.wrong} {await self.page.content()}") from error


@pytest_asyncio.fixture(loop_scope="package")
async def open_page(browser):
    """``open_page(base, place, width=, theme=)``: a Watched page in a context of its own."""
    async with contextlib.AsyncExitStack() as stack:
        opened = []

        async def open_(base, place="/", *, width=1400, theme="light", **options):
            context = await browser.new_context(
                viewport={"width": width, "height": HEIGHTS[width]},
                color_scheme=theme,
                locale=LOCALE,
                timezone_id=TIME_ZONE,
                **options,
            )
            stack.push_async_callback(context.close)
            watched = Watched(await context.new_page(), base)
            opened.append(watched)
            await watched.open(place)
            return watched

        yield open_
        complaints = [each for watched in opened for each in watched.complaints()]
        assert not complaints, complaints


async def until(condition, what, deadline_s=15.0):
    """The first true value of an async condition."""
    end = time.monotonic() + deadline_s
    while not (found := await condition()):
        assert time.monotonic() < end, f"waited {deadline_s} s for {what}"
        await asyncio.sleep(POLL_S)
    return found


def api(base, method, path, body=None):
    """As another client would."""
    request = urllib.request.Request(
        f"{base}/api/v1{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        text = answer.read()
    return json.loads(text) if text else None
