"""A hundred thousand projects on the page: a search shows its first rows quickly, and says how many there are.

The bound is a generous one, for a busy machine; the figures themselves are printed (`pytest -rP`).
"""

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from cluster import config
from cluster.settings import Settings
from tests.conftest import _fresh_database, execute_once, run_apart
from tests.integration.harness import free_port, wait_until
from tests.page.conftest import api, chromium, until

pytestmark = pytest.mark.asyncio(loop_scope="package")

PROJECTS = 100_000
SHOWN_S = 2.0
PLAN = """
    INSERT INTO projects (name, url, interval)
    SELECT 'service ' || n || ' ' || (ARRAY['alpha','beta','gamma','delta'])[1 + n % 4],
           'https://host-' || n % 977 || '.example.org/health/' || n, 300
    FROM generate_series(1, 100000) AS n"""


@pytest.fixture(scope="module")
def crowded(postgres_url, template_database):
    """The base URL of a coordinator that has them all, and no worker."""
    chromium()
    base = Path(tempfile.mkdtemp(prefix="rp-"))
    databases = _fresh_database(postgres_url, template_database)
    url = next(databases)
    run_apart(lambda: execute_once(url, PLAN, "ANALYZE projects"))
    settings = Settings(data_dir=base / "d", database_url=url, http=f"127.0.0.1:{free_port()}", name="coordinator")
    with (base / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "coordinator"],
            env=config.role_environ(settings, os.environ),
            stdin=subprocess.PIPE,
            stderr=log,
        )
    try:

        def loaded():
            assert process.poll() is None, (base / "log").read_text()
            try:
                return api(f"http://{settings.http}", "GET", "/status")["active_projects"] == PROJECTS
            except OSError:
                return False

        wait_until(loaded, "a hundred thousand projects to be loaded")
        yield f"http://{settings.http}"
    finally:
        process.kill()
        process.communicate()
        next(databases, None)
        shutil.rmtree(base, ignore_errors=True)


async def test_a_search_among_a_hundred_thousand_is_answered_while_one_types(open_page, crowded):
    page = (await open_page(crowded, "/projects")).page
    await page.locator(".figures", has_text="100,000 projects").wait_for()
    first = page.locator("tbody .project-cell > a").first
    seen = []
    for text in ("service 77777", "health/4242", "gamma", "host-311", "nobody has this", "SERVICE 5"):
        before = time.monotonic()
        await page.locator("#search").fill(text)
        if text.startswith("nobody"):
            await page.get_by_text("No project matches.").wait_for()
        else:
            await page.wait_for_function(
                """text => {
                    const rows = [...document.querySelectorAll('tbody .project-cell')];
                    const has = row => row.textContent.toLowerCase().includes(text.toLowerCase());
                    return rows.length > 0 && rows.every(has) && location.hash.includes('search=');
                }""",
                arg=text,
            )
        seen.append(time.monotonic() - before)
    await page.locator("#search").fill("")
    await page.locator(".figures", has_text="100,000 projects").wait_for()
    assert await first.inner_text() == "service 1 beta"
    print(
        f"searches among {PROJECTS:,}:"
        f" median {statistics.median(seen) * 1000:.0f} ms, slowest {max(seen) * 1000:.0f} ms"
    )
    assert max(seen) < SHOWN_S, seen


async def test_pages_are_turned_forth_and_back(open_page, crowded):
    page = (await open_page(crowded, "/projects?sort=-id")).page
    first = page.locator("tbody .project-cell > a").first
    await page.get_by_text("Page 1 of 2,000").wait_for()
    assert (await first.inner_text()).startswith("service 100000 ")
    for number, top in ((2, "service 99950 "), (3, "service 99900 ")):
        await page.get_by_role("button", name="Next").click()
        await page.get_by_text(f"Page {number} of 2,000").wait_for()

        async def turned(top=top):
            return (await first.inner_text()).startswith(top)

        await until(turned, top)
    await page.go_back()
    await page.locator("tbody a", has_text="service 99950 ").wait_for()
    await page.get_by_role("button", name="Previous").click()
    await page.locator("tbody a", has_text="service 100000 ").wait_for()
    assert await page.get_by_role("button", name="Previous").is_disabled()


async def test_an_answer_that_was_overtaken_is_not_shown(open_page, crowded):
    """The slower answer to an older question comes last, and stays unseen."""
    page = (await open_page(crowded, "/projects")).page
    await page.locator(".figures", has_text="100,000 projects").wait_for()
    held = []

    async def hold(route):
        held.append(route)

    await page.route(re.compile("search=alpha"), hold)
    await page.locator("#search").fill("alpha")

    async def is_held():
        return bool(held)

    await until(is_held, "the question to be asked")
    await page.locator("#search").fill("service 4242")
    await (
        page.locator("tbody a", has_text="service 4242 gamma")
        .or_(page.locator("tbody a", has_text="service 4242 alpha"))
        .first.wait_for()
    )
    for route in held:
        await route.fulfill(status=200, content_type="application/json", body='{"items": [], "next_cursor": null}')
    assert await page.get_by_text("No project matches.").count() == 0
    assert "search=service+4242" in page.url
