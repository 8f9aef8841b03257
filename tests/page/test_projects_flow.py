"""Projects as people work with them on the page: added, found, changed, switched, removed; by mouse, by keyboard and
against somebody else.
"""

import re

import pytest

from tests.page.conftest import api, until

pytestmark = pytest.mark.asyncio(loop_scope="package")


@pytest.fixture
def base(cluster):
    return f"http://{cluster.http}"


async def heading(page, text):
    await page.locator("h1", has_text=re.compile(f"^{re.escape(text)}$")).wait_for()


def project_of(page):
    return int(re.search(r"#/projects/(\d+)", page.url)[1])


@pytest.mark.parametrize("width", [1400, 390])
async def test_a_project_is_added_polled_changed_switched_and_removed(open_page, base, target, width):
    page = (await open_page(base, "/", width=width)).page
    name = f"flow {width}"
    await page.get_by_role("link", name="Add a project").click()
    await heading(page, "Add a project")
    await page.get_by_label("URL").fill(target.url(f"/ok/flow{width}"))
    await page.get_by_label("Name", exact=True).fill(name)
    await page.get_by_label("Polled every").fill("1")
    await page.get_by_label("Headers").fill("X-From: the page\nAccept: text/plain")
    await page.get_by_role("button", name="Add an assertion").click()
    await page.get_by_label("What is asserted").select_option(label="Time below (ms)")
    await page.get_by_label("Milliseconds").fill("20000")
    await page.get_by_role("button", name="Add", exact=True).click()
    await heading(page, name)
    await page.locator(".heading .pill", has_text="Up").wait_for()
    await page.locator(".result-table tbody tr").first.wait_for()
    await page.locator(".chart-drawing .phase").first.wait_for()
    assert target.count(f"flow{width}") >= 1
    stored = api(base, "GET", f"/projects/{project_of(page)}")
    assert (stored["interval"], stored["headers"]) == (1, {"X-From": "the page", "Accept": "text/plain"})
    assert stored["assertions"] == [{"type": "response_time_below", "ms": 20000}]

    await page.get_by_role("link", name="Edit").click()
    await heading(page, f"Edit {name}")
    lines = await page.get_by_label("Headers").input_value()
    assert sorted(lines.splitlines()) == ["Accept: text/plain", "X-From: the page"]  # the table keeps no order
    await page.get_by_label("Name", exact=True).fill(f"{name} changed")
    await page.get_by_label("Expected status").fill("2xx")
    await page.get_by_role("button", name="Save").click()
    await heading(page, f"{name} changed")
    changed = api(base, "GET", f"/projects/{project_of(page)}")
    assert (changed["expected_status"], changed["headers"]) == ("2xx", stored["headers"])

    await page.get_by_role("button", name="Disable").click()
    await page.locator(".heading .pill", has_text="Paused").wait_for()
    assert api(base, "GET", f"/projects/{project_of(page)}")["enabled"] is False
    await page.get_by_role("button", name="Enable").click()
    await page.get_by_role("button", name="Disable").wait_for()

    await page.get_by_role("button", name="Remove").click()
    dialog = page.get_by_role("dialog")
    assert f"{name} changed" in await dialog.inner_text()
    await dialog.get_by_role("button", name="Cancel").click()
    await dialog.wait_for(state="detached")
    await page.get_by_role("button", name="Remove").click()
    await dialog.get_by_label("Delete its results as well").check()
    await dialog.get_by_role("button", name="Remove").click()
    await heading(page, "Projects")
    await page.locator("tbody tr").first.wait_for()
    assert await page.get_by_role("link", name=f"{name} changed").count() == 0


async def test_a_project_is_added_with_the_keyboard_alone(open_page, base, target):
    page = (await open_page(base, "/")).page
    await page.keyboard.press("n")
    await heading(page, "Add a project")
    await page.keyboard.type(target.url("/ok/keys"))
    await page.keyboard.press("Tab")
    await page.keyboard.type("by keys")
    await page.keyboard.press("Tab")
    await page.keyboard.press("Control+a")
    await page.keyboard.type("5")
    await page.keyboard.press("Tab")
    await page.keyboard.press("Tab")
    await page.keyboard.press("Space")  # not enabled
    await page.keyboard.press("Enter")
    await heading(page, "by keys")
    await page.locator(".heading .pill", has_text="Paused").wait_for()
    for _ in range(20):
        await page.keyboard.press("Tab")
        if await page.evaluate("document.activeElement.textContent") == "Remove":
            break
    outline = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    await page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    await dialog.wait_for()
    assert await page.evaluate("document.activeElement.textContent") == "Cancel"
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    await heading(page, "Projects")


async def test_what_is_wrong_is_said_at_its_field(open_page, base):
    watched = await open_page(base, "/projects/new")
    watched.expect(r"^422 .*/api/v1/projects$", r"console: Failed to load resource.*422")
    page = watched.page
    url = page.get_by_label("URL")
    await page.get_by_role("button", name="Add", exact=True).click()
    assert await url.get_attribute("aria-invalid") == "true"
    assert await url.evaluate("element => element === document.activeElement")
    described = await url.get_attribute("aria-describedby")
    assert "URL is needed" in [await page.locator(f"#{each}").inner_text() for each in described.split()]

    await url.fill("http://")
    await page.get_by_role("button", name="Add", exact=True).click()
    await page.locator(".field-error", has_text="host").wait_for()
    assert await url.evaluate("element => element === document.activeElement")

    await url.fill("http://127.0.0.1:9/")
    await page.get_by_label("Polled every").fill("ten")
    await page.locator("summary", has_text="Connection and TLS").click()
    await page.get_by_label("Server name").fill("example.org")
    await page.get_by_role("button", name="Add", exact=True).click()
    await page.locator(".field-error", has_text="whole number").wait_for()
    assert await url.get_attribute("aria-invalid") is None
    assert await page.get_by_label("Polled every").evaluate("element => element === document.activeElement")
    await page.get_by_label("Polled every").fill("10")
    await page.locator("summary", has_text="Connection and TLS").click()  # folded again: it opens for the error
    await page.get_by_role("button", name="Add", exact=True).click()
    await page.locator(".field-error", has_text="https").wait_for()
    assert await page.get_by_label("Server name").evaluate("element => element === document.activeElement")
    assert await page.get_by_role("alert").first.is_visible()


async def test_a_change_of_somebody_else_is_not_overwritten_unseen(open_page, base, target):
    made = api(base, "POST", "/projects", {"url": target.url("/ok/conflict"), "name": "conflict", "enabled": False})
    watched = await open_page(base, f"/projects/{made['id']}/edit")
    watched.expect(r"^412 ", r"console: Failed to load resource.*412")
    page = watched.page
    await page.get_by_label("Name", exact=True).fill("mine")
    api(base, "PATCH", f"/projects/{made['id']}", {"expected_status": "204"})
    await page.get_by_role("button", name="Save", exact=True).click()
    await page.get_by_role("alert").get_by_text("Somebody else has changed this project").wait_for()
    assert api(base, "GET", f"/projects/{made['id']}")["name"] == "conflict"
    await page.get_by_role("button", name="Save mine over it").click()
    await heading(page, "mine")
    stored = api(base, "GET", f"/projects/{made['id']}")
    assert (stored["name"], stored["expected_status"]) == ("mine", "204")
    api(base, "DELETE", f"/projects/{made['id']}")


async def test_secrets_stay_masked_and_are_kept(open_page, base, target):
    made = api(
        base,
        "POST",
        "/projects",
        {
            "url": target.url("/ok/secret").replace("http://", "http://me:h1dd3n@"),
            "name": "secret",
            "enabled": False,
            "headers": {"X-Api-Key": "h1dd3n"},
            "body": "h1dd3n",
            "method": "POST",
        },
    )
    page = (await open_page(base, f"/projects/{made['id']}/edit")).page
    await page.get_by_label("Name", exact=True).fill("still secret")
    assert "h1dd3n" not in await page.content()
    await page.get_by_role("button", name="Save", exact=True).click()
    await heading(page, "still secret")
    assert "h1dd3n" not in await page.content()
    stored = api(base, "GET", f"/projects/{made['id']}?reveal=true")
    assert (stored["body"], stored["headers"]) == ("h1dd3n", {"X-Api-Key": "h1dd3n"})
    assert "me:h1dd3n@" in stored["url"]
    api(base, "DELETE", f"/projects/{made['id']}")


@pytest.mark.parametrize("width", [1400, 390])
async def test_searching_filtering_and_going_back(open_page, base, width):
    page = (await open_page(base, "/projects", width=width)).page
    rows = page.locator("tbody tr")
    await rows.first.wait_for()
    await page.locator("#search").type("STEADY")

    async def only_steady():
        texts = await page.locator("tbody .project-cell > a").all_inner_texts()
        return len(texts) == 6 and all("steady" in text for text in texts)

    await until(only_steady, "the six that are called steady")
    await page.locator("#spoken", has_text="6 projects found").wait_for(state="attached")
    assert page.url.endswith("#/projects?search=STEADY")
    await page.get_by_role("radio", name="Down").check(force=True)
    await page.get_by_text("No project matches.").wait_for()
    await page.locator("#search").fill("")
    await page.get_by_role("link", name="broken").wait_for()
    assert page.url.endswith("#/projects?state=down")
    await page.get_by_role("link", name="broken").click()
    await heading(page, "broken")
    await page.go_back()
    await heading(page, "Projects")
    assert await page.get_by_role("radio", name="Down").is_checked()
    await page.get_by_role("link", name="broken").wait_for()
    assert await page.locator("tbody tr").count() == 1


async def test_columns_are_sorted_by_their_headings(open_page, base):
    page = (await open_page(base, "/projects")).page
    column = page.get_by_role("columnheader", name="Project")
    assert await column.get_attribute("aria-sort") == "none"
    await column.get_by_role("button").click()

    async def sorted_by_name():
        names = await page.locator("tbody .project-cell > a").all_inner_texts()
        return len(names) > 5 and names.index("broken") < names.index("paused") < names.index("steady 0")

    await until(sorted_by_name, "names in order")
    assert await column.get_attribute("aria-sort") == "ascending"
    await column.get_by_role("button").click()

    async def reversed_by_name():
        names = await page.locator("tbody .project-cell > a").all_inner_texts()
        return len(names) > 5 and names.index("broken") > names.index("paused") > names.index("steady 0")

    await until(reversed_by_name, "names in reverse")
    assert await column.get_attribute("aria-sort") == "descending"


async def test_what_somebody_else_adds_appears_by_itself(open_page, base, target):
    page = (await open_page(base, "/projects?search=elsewhere")).page
    await page.get_by_text("No project matches.").wait_for()
    made = api(base, "POST", "/projects", {"url": target.url("/ok/elsewhere"), "name": "elsewhere", "enabled": False})
    await page.get_by_role("link", name="elsewhere").wait_for()
    api(base, "DELETE", f"/projects/{made['id']}")
    await page.get_by_text("No project matches.").wait_for()


async def test_a_project_that_is_gone_says_so(open_page, base):
    watched = await open_page(base, "/")
    watched.expect(r"^404 ", r"console: Failed to load resource.*404")
    await watched.page.evaluate("location.hash = '#/projects/999999'")
    await heading(watched.page, "No such project")
