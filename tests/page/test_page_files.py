"""The files of the page as they are served, and what no browser has to be asked: nothing foreign, nothing inline."""

import asyncio
import contextlib
import gzip
import re

import aiohttp
import pytest
from aiohttp import web

from cluster.project import FIELD_NAMES
from coordinator.web.page_files import DIRECTORY, FOREVER, PageFiles, wants_page

FILES = {path.name: path.read_text(encoding="utf-8") for path in DIRECTORY.iterdir()}
MODULES = {name: text for name, text in FILES.items() if name.endswith(".js")}


@pytest.fixture
async def page():
    """(files, base URL, HTTP session) of a server with nothing but the page."""
    files = PageFiles()
    app = web.Application()
    app.router.add_get("/", files.index)
    app.router.add_get("/static/{version}/{name}", files.static)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    async with aiohttp.ClientSession(auto_decompress=False) as http:
        yield files, f"http://{host}:{port}", http
    await runner.cleanup()


async def test_everything_the_page_names_is_there(page):
    files, base, http = page
    async with http.get(base + "/", headers={"Accept-Encoding": "identity"}) as answer:
        assert (answer.status, answer.content_type) == (200, "text/html")
        index = await answer.text()
    named = re.findall(r'(?:src|href)="(/[^"#]+)[#"]', index)
    assert {address.rsplit("/", 1)[1] for address in named} >= {*MODULES, "page.css", "theme.css", "icon.svg"}
    for address in set(named):
        async with http.get(base + address) as answer:
            assert answer.status == 200, address
            assert answer.headers["Cache-Control"] == FOREVER
    assert files.version in index
    assert "VERSION" not in index


async def test_a_file_that_is_known_is_not_sent_again(page):
    files, base, http = page
    for address in ("/", f"/static/{files.version}/main.js"):
        async with http.get(base + address) as answer:
            etag = answer.headers["ETag"]
            policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'self'" in policy
        assert "unsafe" not in policy
        async with http.get(base + address, headers={"If-None-Match": etag}) as answer:
            assert (answer.status, await answer.read()) == (304, b"")
        async with http.get(base + address, headers={"If-None-Match": '"other"'}) as answer:
            assert answer.status == 200


async def test_it_is_packed_for_whoever_takes_that(page):
    files, base, http = page
    address = f"{base}/static/{files.version}/page.css"
    async with http.get(address, headers={"Accept-Encoding": "gzip"}) as packed:
        assert packed.headers["Content-Encoding"] == "gzip"
        assert gzip.decompress(await packed.read()).decode() == FILES["page.css"]
    async with http.get(address, headers={"Accept-Encoding": "identity"}) as plain:
        assert "Content-Encoding" not in plain.headers
        assert await plain.text() == FILES["page.css"]


async def test_the_address_of_another_version_is_not_kept(page):
    """A tab that was open over an upgrade still gets its files; nobody keeps them under the wrong name."""
    _, base, http = page
    async with http.get(f"{base}/static/0123456789abcdef/main.js") as answer:
        assert (answer.status, answer.headers["Cache-Control"]) == (200, "no-cache")


@pytest.mark.parametrize(
    "path",
    [
        "/static/x/../page_files.py",
        "/static/x/..%2fpage_files.py",
        "/static/x/%2e%2e%2fpage_files.py",
        "/static/x/%2e%2e/%2e%2e/page_files.py",
        "/static/x/..%5cpage_files.py",
        "/static/x//etc/passwd",
        "/static/x/%2fetc%2fpasswd",
        "/static/x/main.js%00.css",
        "/static/x/index.html",
        "/static/x/nothing.js",
        "/static/x/",
        "/static/",
    ],
)
async def test_no_path_leads_anywhere_else(page, path):
    _, base, _ = page
    host, port = base.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))  # a client of its own mind: nothing is tidied up
    writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    assert answer.split(b" ", 2)[1] == b"404", answer[:200]


@pytest.mark.parametrize(
    ("accept", "page"),
    [
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", True),
        ("application/json", False),
        ("*/*", False),
        (None, False),
    ],
)
def test_programs_get_the_list_of_endpoints(accept, page):
    class Request:
        headers = {} if accept is None else {"Accept": accept}

    assert wants_page(Request) is page


@pytest.mark.parametrize("name", sorted(FILES))
def test_nothing_is_fetched_from_elsewhere(name):
    text = FILES[name].replace("http://www.w3.org/2000/svg", "").replace("http://host:port", "")
    assert not re.findall(r"(?:https?:)?//[\w-]+\.[\w.-]+", text)
    assert "@import" not in text


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_text_becomes_markup(name):
    """Names of projects are anybody's text."""
    ways = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|setHTML|DOMParser|srcdoc"
    assert not re.findall(rf"{ways}|\beval\(|new Function|javascript:", MODULES[name])


def test_nothing_is_inline():
    index = FILES["index.html"]
    assert not re.findall(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", index)


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"theme.js"}))
def test_every_import_is_there(name):
    """What a module names of another is exported by it."""
    for names, other in re.findall(r"^import \{([^}]+)\} from \"\./([\w.]+)\";", MODULES[name], re.MULTILINE):
        exported = set(
            re.findall(r"^export (?:async )?(?:function|const|class|let) (\w+)", MODULES[other], re.MULTILINE)
        )
        wanted = {each.strip() for each in names.split(",") if each.strip()}
        assert wanted <= exported, (other, wanted - exported)
        unused = {each for each in wanted if len(re.findall(rf"\b{each}\b", MODULES[name])) < 2}
        assert not unused


@pytest.mark.parametrize("name", sorted(set(MODULES)))
def test_every_module_opens_with_what_it_is_for(name):
    assert MODULES[name].startswith("// ")


def test_the_form_has_every_field_of_a_project():
    assert set(re.findall(r"^  \{ name: \"(\w+)\"", MODULES["project_fields.js"], re.MULTILINE)) == set(FIELD_NAMES)


def test_both_themes_have_every_colour():
    light, dark = (
        set(re.findall(r"(--[\w-]+):", block))
        for block in re.findall(r"data-theme=\"(?:light|dark)\"\] \{(.*?)\n\}", FILES["theme.css"], re.DOTALL)
    )
    assert light == dark
    used = set(re.findall(r"var\((--[\w-]+)\)", FILES["page.css"])) - {"--swatch"}
    shared = set(re.findall(r"^  (--[\w-]+):", FILES["theme.css"].rpartition(":root {")[2], re.MULTILINE))
    assert used <= light | shared


def test_every_class_that_is_styled_is_used():
    styled = set(re.findall(r"\.([a-z][\w-]*)", re.sub(r"/\*.*?\*/", "", FILES["page.css"], flags=re.DOTALL)))
    everything = "\n".join(text for name, text in FILES.items() if not name.endswith(".css"))
    made = {"phase-dns", "phase-connect", "phase-tls", "phase-first-byte", "phase-transfer", "phase-other"}
    made |= {"line-p50", "line-p95", "line-p99"}  # put together from a word and a name
    unused = {name for name in styled - made if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", everything)}
    assert not unused
