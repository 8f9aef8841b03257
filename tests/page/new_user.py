"""What the README tells a new user to do, as a script: the command, the page, three URLs of their own, and a look.

``NewUser`` runs the very command of the README in a fresh data directory, which brings an embedded PostgreSQL; only the
port is another, so that it can run beside a cluster that is there.  The pictures of the README are made by the same
script (``python -m tests.page.screenshots``).
"""

import contextlib
import random
import re
import shlex
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.docs.repository_facts import read
from tests.integration.harness import Cluster

SECTION = "## The page"
PICTURES = ("overview", "project")
PICTURE_BYTES_MAX = 200_000
NAMES = ("shop", "login", "search")
SIZE = {"width": 1400, "height": 900}
TALL = {"width": 1400, "height": 1280}  # of the picture of a project: both charts, and the first results
FAILING = range(200, 212)  # requests of the last site that it refuses: so that a picture has something to show


def section():
    return read("README.md").partition(f"\n{SECTION}\n")[2].partition("\n## ")[0]


def command():
    """The arguments of the `cluster up` of the README."""
    (line,) = re.findall(r"^(cluster up.*?)(?:\s+#.*)?$", section(), re.MULTILINE)
    return shlex.split(line)[1:]


class OwnSite:
    """A small server of one's own, which takes its time as real ones do."""

    def __init__(self, name, usual_ms, *, fails=range(0)):
        chance = random.Random(name)
        lock = threading.Lock()
        asked = 0

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                nonlocal asked
                with lock:
                    asked += 1
                    number, delay_s = asked, usual_ms / 1000 * chance.lognormvariate(0, 0.35)
                time.sleep(delay_s)
                body = name.encode() * chance.randint(200, 400)
                self.send_response(503 if number in fails else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                """Not on standard error."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}/{name}"

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_exc):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


@contextlib.contextmanager
def own_sites():
    """{name: URL} of three."""
    with contextlib.ExitStack() as stack:
        sites = [OwnSite("shop", 45), OwnSite("login", 20), OwnSite("search", 80, fails=FAILING)]
        yield {name: stack.enter_context(site).url for name, site in zip(NAMES, sites, strict=True)}


class NewUser(Cluster):
    """A cluster without a database of its own: `up` brings one."""

    def __init__(self, data_dir):
        super().__init__(data_dir, None, workers=0)

    def start(self):
        return self.start_command([*command(), "--data-dir", str(self.data_dir), "--http", self.http])


async def add(page, name, url):
    """As the README says, from wherever one is; ends on the project's own page."""
    await page.keyboard.press("n")
    await page.get_by_role("heading", name="Add a project").wait_for()
    await page.get_by_label("URL").fill(url)
    await page.get_by_label("Name", exact=True).fill(name)
    await page.get_by_label("Polled every").fill("1")
    await page.get_by_role("button", name="Add", exact=True).click()
    await page.locator("h1", has_text=re.compile(f"^{name}$")).wait_for()


async def see_three_up(page):
    """The list shows three projects, each of them up."""
    await page.locator("#places").get_by_role("link", name="Projects").click()
    for name in NAMES:
        row = page.locator("tbody tr", has=page.get_by_role("link", name=name, exact=True))
        await row.locator(".pill", has_text="Up").wait_for()
    assert await page.locator("tbody tr").count() == len(NAMES)


async def take_pictures(page, directory):
    """The two of the README; what is on the page must have come in before."""
    await page.locator("#places").get_by_role("link", name="Overview").click()
    await page.locator("svg.rate polyline").first.wait_for()
    await page.locator("table.worker-table tbody tr").first.wait_for()
    await page.screenshot(path=directory / "overview.png")
    await page.locator("#places").get_by_role("link", name="Projects").click()
    await page.get_by_role("link", name=NAMES[-1], exact=True).click()
    await page.locator(".chart-drawing .phase").nth(5).wait_for()
    await page.locator(".result-table tbody tr").first.wait_for()
    await page.mouse.move(0, 0)
    await page.set_viewport_size(TALL)
    await page.screenshot(path=directory / "project.png")
