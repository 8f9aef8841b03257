"""What the page shows by itself: totals, load, changes of state; and what it says when the coordinator is away.

Also what an operator steers here: draining a worker and scaling.
"""

import asyncio
import os
import re
import signal

import pytest

from tests.integration.harness import is_alive
from tests.page.conftest import api, until

pytestmark = pytest.mark.asyncio(loop_scope="package")


@pytest.fixture
def base(cluster):
    return f"http://{cluster.http}"


async def number_of(page, title):
    """The value of a tile, with its digits alone."""
    text = (
        await page.locator(".tile", has=page.locator("dt", has_text=re.compile(f"^{title}$")))
        .locator(".tile-value")
        .inner_text()
    )
    digits = re.sub(r"[^\d.]", "", text)
    return float(digits) if digits else None


async def test_totals_and_load_move_by_themselves(open_page, base):
    page = (await open_page(base, "/")).page
    await page.locator("#link-state[data-state=live]").wait_for()
    await page.locator(".tile", has_text="Polls").first.wait_for()
    before = await until(lambda: number_of(page, "Polls"), "polls to be counted")

    async def more():
        return await number_of(page, "Polls") > before

    await until(more, "more polls")
    workers = page.locator("#main table.worker-table tbody tr")
    assert await workers.count() == 2
    assert re.fullmatch(
        r"\d+ of \d+ requests in flight", await workers.first.locator("meter").get_attribute("aria-label")
    )
    await page.locator("svg.rate polyline").first.wait_for()
    label = await page.locator("svg.rate").get_attribute("aria-label")
    assert label.startswith("Polls per second over the last")
    await page.locator(".down-list", has_text="broken").wait_for()


async def test_figures_are_not_spoken_each_second(open_page, base):
    page = (await open_page(base, "/")).page
    await page.locator("#link-state[data-state=live]").wait_for()
    await page.evaluate(
        """() => {
            window.spoken = 0;
            window.ticks = 0;
            const region = document.getElementById('spoken');
            const all = {childList: true, characterData: true, subtree: true};
            new MutationObserver(() => { window.spoken += 1; }).observe(region, all);
            const tiles = document.querySelector('.tiles');
            new MutationObserver(() => { window.ticks += 1; }).observe(tiles, {childList: true});
        }"""
    )
    await page.wait_for_function("() => window.ticks >= 3")
    assert await page.evaluate("window.spoken") == 0
    assert await page.locator("[aria-live]:not([aria-live=off])").count() == 1


async def test_a_project_that_goes_down_is_seen_to(open_page, base, target):
    """The list learns of it by the stream, without being asked to."""
    made = await asyncio.to_thread(
        api,
        base,
        "POST",
        "/projects",
        {"url": target.url("/fail/100000/turns"), "name": "turns", "interval": 1, "down_after": 3},
    )
    page = (await open_page(base, "/projects?search=turns")).page
    await page.locator("tbody .pill", has_text="Down").wait_for(timeout=20_000)
    await page.locator("#places").get_by_role("link", name="Changes").click()
    await page.locator("tbody tr", has_text="turns").first.wait_for()
    await asyncio.to_thread(api, base, "POST", "/projects/bulk", {"action": "delete", "ids": [made["id"]]})


async def test_scaling_from_the_page(open_page, cluster, base):
    page = (await open_page(base, "/workers")).page
    slots = page.get_by_role("spinbutton", name="Requests in flight")

    async def filled():
        return await slots.input_value()

    assert await until(filled, "the present limit") == "500"
    await slots.fill("0")
    await page.get_by_role("button", name="Scale").click()
    await page.locator(".field-error", has_text="whole number").wait_for()
    assert await slots.evaluate("element => element === document.activeElement")
    await slots.fill("300")
    await page.get_by_role("button", name="Scale").click()
    await page.locator("#spoken", has_text="300 requests in flight").wait_for(state="attached")
    assert (await asyncio.to_thread(cluster.status))["max_concurrent_http"] == 300


async def test_draining_asks_first(open_page, cluster, base):
    """Only as far as the question: a worker that ends is the other tests' load."""
    page = (await open_page(base, "/workers")).page
    drain = page.locator("tbody tr").first.get_by_role("button", name="Drain")
    await drain.click()
    dialog = page.get_by_role("dialog")
    assert "move to the other workers" in await dialog.inner_text()
    sent = []
    await page.route("**/workers/*/drain", lambda route: answer_drain(route, sent))
    await dialog.get_by_role("button", name="Drain").click()
    await page.locator("#spoken", has_text="is being drained").wait_for(state="attached")
    assert [request.method for request in sent] == ["POST"]
    assert re.search(r"/api/v1/workers/worker-\d/drain$", sent[0].url)


async def answer_drain(route, sent):
    sent.append(route.request)
    await route.fulfill(status=200, content_type="application/json", body="{}")


async def test_it_says_that_the_coordinator_is_away_and_goes_on_when_it_is_back(open_page, cluster, base):
    watched = await open_page(base, "/")
    # The browser itself reports that nobody answers.
    watched.expect(r"net::ERR_", r"^503 ", r"console: Failed to load resource.*503", r"console: .*net::ERR_")
    page = watched.page
    await page.locator("#link-state[data-state=live]").wait_for()
    await page.evaluate(
        """() => {
            window.lost = '';
            const lost = document.getElementById('lost');
            new MutationObserver(() => { window.lost ||= lost.textContent; }).observe(lost, {childList: true});
        }"""
    )
    # It hangs for as long as it takes to be seen, and is then killed: the stream falls silent, and then it ends.
    pid = await asyncio.to_thread(cluster.signal, "coordinator", signal.SIGSTOP)
    try:
        await page.wait_for_function(
            "() => window.lost.startsWith('Connection to the coordinator lost')", timeout=20_000
        )
    finally:
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)
    await page.locator("#link-state[data-state=live]").wait_for(timeout=30_000)
    assert await page.locator("#lost").is_hidden()
    before = await until(lambda: number_of(page, "Polls"), "polls to be counted")

    async def more():
        return await number_of(page, "Polls") > before

    await until(more, "more polls, counted by the new coordinator")
