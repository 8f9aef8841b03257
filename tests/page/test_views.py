"""Each view at 390 and 1400 pixels, dark and light: it is there, nothing is on the console, and axe finds nothing that
is serious; what people call their projects stays text.
"""

import re
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import asyncpg
import pytest
from axe_playwright_python.async_playwright import Axe

from tests.page.conftest import CANARY, TIME_ZONE, until

pytestmark = pytest.mark.asyncio(loop_scope="package")

COLOUR_RULES = ("color-contrast", "link-in-text-block")
GRAVE = {"serious", "critical"}
DARK_GROUND = "rgb(14, 18, 22)"


async def project_id(url, name):
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval("SELECT id FROM projects WHERE name = $1", name)
    finally:
        await connection.close()


@pytest.fixture(scope="package")
def views(cluster, package_database_url):
    """Address and what must be seen there, of each view."""
    return {
        "overview": ("/", "#main table tbody tr"),
        "projects": ("/projects", "#main tbody tr svg.uptime-bar"),
        "project": ("/projects/1?period=1h", ".chart-drawing .phase"),
        "broken": ("/projects/7", ".pill[data-state=down]"),
        "new": ("/projects/new", "#main form"),
        "edit": ("/projects/1/edit", "#main form"),
        "changes": ("/changes", "#main tbody tr"),
        "workers": ("/workers", "#main tbody tr:nth-child(2) meter"),
        "nowhere": ("/nothing/here", "#main a"),
    }


async def grave_findings(page, *rules):
    """[(rule, where, why)] of what is serious or worse; of these rules only, where some are named."""
    options = {"resultTypes": ["violations"]}
    if rules:
        options["runOnly"] = {"type": "rule", "values": rules}
    results = await Axe().run(page, options=options)
    return [
        (found["id"], node["target"], node["failureSummary"][:300])
        for found in results.response["violations"]
        if found["impact"] in GRAVE
        for node in found["nodes"]
    ]


@pytest.mark.parametrize("width", [1400, 390])
async def test_every_view_is_whole_and_accessible(open_page, cluster, views, width):
    watched = await open_page(f"http://{cluster.http}", "/", width=width)
    page = watched.page
    for number, (name, (address, seen)) in enumerate(views.items()):
        await page.evaluate("address => { location.hash = address }", f"#{address}")
        await page.locator(seen).first.wait_for(timeout=20_000)
        # Themes differ in colours alone: all rules for one of them, those of colours for the other, in turns.
        for theme, rules in zip(
            ("light", "dark") if number % 2 else ("dark", "light"), ((), COLOUR_RULES), strict=True
        ):
            if await page.locator("html").get_attribute("data-theme") != theme:
                await page.locator("#theme-button").click()
            assert await page.locator("html").get_attribute("data-theme") == theme
            assert await grave_findings(page, *rules) == [], (name, theme)
        overflow = await page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overflow <= 0, f"{name} is {overflow} px too wide"
        assert await page.locator("h1").count() == 1, name
        assert await page.locator("h1").inner_text() in await page.title()
        current = await page.locator("#places [aria-current=page]").all_inner_texts()
        assert len(current) == (0 if name == "nowhere" else 1), name
    assert await page.locator(".problem").count() == 0


async def test_dialogs_are_accessible_and_give_the_focus_back(open_page, cluster):
    page = (await open_page(f"http://{cluster.http}", "/projects/1")).page
    for opener, leave in (("#help-button", "Close"), ("button:has-text('Remove')", "Cancel")):
        for theme in ("light", "dark"):
            if await page.locator("html").get_attribute("data-theme") != theme:
                await page.locator("#theme-button").click()
            button = page.locator(opener).first
            await button.click()
            dialog = page.get_by_role("dialog")
            await dialog.wait_for()
            assert await grave_findings(page) == []
            await dialog.get_by_role("button", name=leave).click()
            await dialog.wait_for(state="detached")
            assert await button.evaluate("element => element === document.activeElement")


async def test_names_stay_text(open_page, cluster, package_database_url):
    watched = await open_page(f"http://{cluster.http}", "/projects")
    page = watched.page
    canary = await project_id(package_database_url, CANARY)
    link = page.get_by_role("link", name=CANARY, exact=True)
    await link.wait_for()
    await link.click()
    await page.locator("h1", has_text="<img").wait_for()
    assert await page.locator("h1").inner_text() == CANARY
    await page.locator("button", has_text="Remove").click()
    await page.get_by_role("dialog").wait_for()
    assert CANARY in await page.get_by_role("dialog").inner_text()
    await page.keyboard.press("Escape")
    for place in (f"/projects/{canary}/edit", "/projects", "/", "/changes"):
        await page.evaluate("address => { location.hash = address }", f"#{place}")
        await page.locator("main h1").wait_for()
    assert await page.locator("main img, main script").count() == 0
    assert await page.title() not in {"1", "2"}


async def test_the_theme_follows_the_system_and_then_the_viewer(open_page, cluster):
    base = f"http://{cluster.http}"
    page = (await open_page(base, "/workers", theme="dark")).page
    ground = "getComputedStyle(document.body).backgroundColor"
    assert await page.evaluate(ground) == DARK_GROUND
    await page.emulate_media(color_scheme="light")
    await page.locator("html[data-theme=light]").wait_for()
    assert await page.evaluate(ground) != DARK_GROUND
    await page.keyboard.press("t")
    assert await page.evaluate(ground) == DARK_GROUND
    await page.reload()
    await page.locator("main h1").wait_for()
    assert await page.evaluate(ground) == DARK_GROUND
    assert await page.get_by_role("button", name="Switch to light colours").is_visible()


async def test_times_are_the_viewers_with_utc_in_the_title(open_page, cluster):
    page = (await open_page(f"http://{cluster.http}", "/projects/1")).page
    shown = page.locator(".result-table tbody time").first
    await shown.wait_for()
    instant = datetime.fromisoformat(await shown.get_attribute("datetime"))
    local = instant.astimezone(ZoneInfo(TIME_ZONE))
    assert f"{local:%H:%M:%S}" in await shown.inner_text()
    title = await shown.get_attribute("title")
    assert title.endswith(" UTC")
    assert f"{instant.astimezone(UTC):%Y-%m-%d %H:%M:%S}" in title


async def test_a_chart_is_read_with_the_arrow_keys(open_page, cluster):
    page = (await open_page(f"http://{cluster.http}", "/projects/1?period=1h")).page
    chart = page.get_by_role("slider", name=re.compile("^Phases of the last"))
    await page.locator(".chart-drawing .phase").nth(3).wait_for()
    await page.keyboard.press("Tab")  # the focus is to be the keyboard's
    await chart.focus()
    reading = page.locator(".chart-reading:visible")
    await reading.wait_for()
    first = await chart.get_attribute("aria-valuetext")
    assert "Total" in first
    await page.keyboard.press("ArrowLeft")
    second = await chart.get_attribute("aria-valuetext")
    assert second != first
    assert "success" in second
    await page.keyboard.press("End")
    assert await chart.get_attribute("aria-valuetext") == first
    await page.keyboard.press("Escape")
    await reading.wait_for(state="hidden")


async def test_shortcuts_work_and_can_be_switched_off(open_page, cluster):
    page = (await open_page(f"http://{cluster.http}", "/")).page

    async def heading(text):
        await page.locator("h1", has_text=re.compile(f"^{text}$")).wait_for()

    await page.keyboard.press("g")
    await page.keyboard.press("w")
    await heading("Workers")
    await page.keyboard.press("/")
    await heading("Projects")
    assert await page.evaluate("document.activeElement.id") == "search"
    await page.keyboard.type("n?")  # written, not obeyed
    assert await page.locator("#search").input_value() == "n?"
    await page.keyboard.press("Escape")
    await page.keyboard.press("Escape")
    await page.keyboard.press("?")
    await page.get_by_role("dialog").wait_for()
    await page.get_by_label("Shortcuts of a single key").uncheck()
    await page.keyboard.press("Escape")
    await page.keyboard.press("n")
    await page.keyboard.press("g")
    await page.keyboard.press("w")
    await page.locator("#help-button").click()
    await page.get_by_role("dialog").wait_for()
    assert await page.locator("h1").inner_text() == "Projects"
    await page.get_by_label("Shortcuts of a single key").check()
    await page.keyboard.press("Escape")
    await page.keyboard.press("n")
    await heading("Add a project")


async def test_the_skip_link_leads_past_the_bar(open_page, cluster):
    page = (await open_page(f"http://{cluster.http}", "/projects")).page
    await page.keyboard.press("Tab")
    skip = page.locator("#skip")
    assert await skip.evaluate("element => element === document.activeElement")

    async def visible():
        box = await skip.bounding_box()
        return box["y"] >= 0

    await until(visible, "the skip link to be seen")
    await page.keyboard.press("Enter")
    assert await page.evaluate("document.activeElement.id") == "main"
    assert page.url.endswith("#/projects")
