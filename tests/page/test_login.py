"""Where authentication is required: the page asks who is there, shows what they may do, and lets them go."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import pytest

from cluster import config
from cluster.settings import Settings
from tests.conftest import _fresh_database
from tests.integration.harness import clean_environ, free_port, wait_until
from tests.page.conftest import api, chromium
from tests.page.test_views import grave_findings

pytestmark = pytest.mark.asyncio(loop_scope="package")

PASSWORD = "a long enough password 1"


class GuardedCoordinator:
    """`python -m coordinator` behind a proxy, as it is told: on loopback, and it asks who is there all the same."""

    def __init__(self, data_dir, database_url):
        settings = Settings(
            data_dir=data_dir, database_url=database_url, http=f"127.0.0.1:{free_port()}", name="coordinator"
        )
        self.settings = msgspec.structs.replace(settings, http_behind_tls=True)
        self.base = f"http://{self.settings.http}"
        self.log = data_dir.parent / "coordinator.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "coordinator"],
                env=config.role_environ(self.settings, os.environ),
                stdin=subprocess.PIPE,
                stderr=log,
            )

    def wait(self):
        def answers():
            assert self.process.poll() is None, self.log.read_text()
            try:
                return api(self.base, "GET", "/session")
            except OSError:
                return None

        return wait_until(answers, "the coordinator's answer")

    def end(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def guarded(postgres_url, template_database):
    chromium()
    base = Path(tempfile.mkdtemp(prefix="rp-"))
    databases = _fresh_database(postgres_url, template_database)
    url = next(databases)
    environ = clean_environ() | {"DATABASE_URL": url}
    for name, scope in (("ann", "admin"), ("rob", "read")):
        done = subprocess.run(
            [sys.executable, "-m", "cluster", "user", "add", name, "--scope", scope, "--data-dir", str(base / "d")],
            input=PASSWORD + "\n",
            capture_output=True,
            text=True,
            env=environ,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    running = GuardedCoordinator(base / "d", url)
    try:
        running.wait()
        yield running
    finally:
        running.end()
        next(databases, None)
        shutil.rmtree(base, ignore_errors=True)


async def log_in(page, user, password=PASSWORD):
    await page.get_by_label("User").fill(user)
    await page.get_by_label("Password").fill(password)
    await page.get_by_role("button", name="Log in").click()


@pytest.mark.parametrize("width", [1400, 390])
async def test_logging_in_and_out(open_page, guarded, width):
    watched = await open_page(guarded.base, "/projects/new", width=width)
    watched.expect(r"^401 .*/api/v1/session$", r"console: Failed to load resource.*401")
    page = watched.page
    await page.get_by_role("heading", name="Log in").wait_for()
    assert await page.locator("#places").is_hidden()
    assert await grave_findings(page) == []
    await page.get_by_role("button", name="Log in").click()
    await page.get_by_role("alert").get_by_text("The user is missing").wait_for()
    await log_in(page, "ann", "not the password")
    await page.get_by_role("alert").get_by_text("user or password is wrong").wait_for()
    assert await page.get_by_label("Password").input_value() == ""
    await log_in(page, "ann")
    await page.get_by_role("heading", name="Add a project").wait_for()  # where they were going
    assert await page.locator(".who-name").inner_text() == "ann"
    await page.get_by_label("URL").fill("http://127.0.0.1:9/")
    await page.get_by_label("Enabled: poll it").uncheck()
    await page.get_by_role("button", name="Add", exact=True).click()
    await page.locator("h1", has_text="http://127.0.0.1:9/").wait_for()
    await page.reload()
    await page.locator("h1", has_text="http://127.0.0.1:9/").wait_for()
    await page.get_by_role("button", name="Log out").click()
    await page.get_by_role("heading", name="Log in").wait_for()
    assert await page.locator("#who").inner_text() == ""
    await page.reload()
    await page.get_by_role("heading", name="Log in").wait_for()


async def test_who_may_only_look_is_offered_nothing_else(open_page, guarded):
    watched = await open_page(guarded.base, "/projects")
    page = watched.page
    await log_in(page, "rob")
    await page.get_by_role("heading", name="Projects").wait_for()
    assert await page.get_by_role("link", name="Add").count() == 0
    await page.evaluate("location.hash = '#/workers'")
    await page.get_by_role("heading", name="Workers").first.wait_for()
    assert await page.get_by_role("button", name="Scale").count() == 0
    await page.evaluate("location.hash = '#/projects/new'")
    await page.get_by_role("heading", name="Not allowed").wait_for()
    await page.get_by_role("button", name="Log out").click()
    await page.get_by_role("heading", name="Log in").wait_for()


async def test_a_session_that_ended_elsewhere_asks_again(open_page, guarded):
    watched = await open_page(guarded.base, "/projects")
    watched.expect(r"^401 ", r"console: Failed to load resource.*401")
    page = watched.page
    await log_in(page, "rob")
    await page.get_by_role("heading", name="Projects").wait_for()
    await page.context.clear_cookies()
    await page.evaluate("location.hash = '#/changes'")
    await page.get_by_role("heading", name="Log in").wait_for()
