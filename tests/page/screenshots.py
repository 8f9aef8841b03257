"""Makes the pictures of the README anew: ``python -m tests.page.screenshots [--seconds 330] [--into DIRECTORY]``.

It does what the README tells a new user to do (new_user.py), lets it run for so long that there is something to see,
and takes the pictures.  Needs Chromium.
"""

import argparse
import asyncio
import os
import shutil
import tempfile
from pathlib import Path

from playwright.async_api import async_playwright

from tests.docs.repository_facts import ROOT
from tests.page import new_user
from tests.page.conftest import BROWSERS, TIME_ZONE


async def make(base, directory, seconds):
    cluster = new_user.NewUser(base / "d")
    try:
        cluster.start().wait_ready(120)
        with new_user.own_sites() as sites:
            async with async_playwright() as playwright:
                path = next(filter(None, map(shutil.which, BROWSERS)))
                options = ["--no-sandbox"] if os.geteuid() == 0 else []
                browser = await playwright.chromium.launch(executable_path=path, args=options)
                page = await browser.new_page(viewport=new_user.SIZE, color_scheme="light", timezone_id=TIME_ZONE)
                await page.goto(f"http://{cluster.http}/")
                await page.locator("main h1").wait_for()
                for name, url in sites.items():
                    await new_user.add(page, name, url)
                await new_user.see_three_up(page)
                await page.locator("#places").get_by_role("link", name="Overview").click()
                await page.wait_for_timeout(seconds * 1000)
                await new_user.take_pictures(page, directory)
                await browser.close()
    finally:
        cluster.end()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=330.0, help="how long it polls before the pictures are taken")
    parser.add_argument("--into", type=Path, default=ROOT / "deploy/screenshots", help="where they go")
    arguments = parser.parse_args()
    arguments.into.mkdir(parents=True, exist_ok=True)
    base = Path(tempfile.mkdtemp(prefix="rp-"))
    base.chmod(0o755)  # as root PostgreSQL runs under another account, which must reach it
    try:
        asyncio.run(make(base, arguments.into, arguments.seconds))
    finally:
        shutil.rmtree(base, ignore_errors=True)
    for name in new_user.PICTURES:
        path = arguments.into / f"{name}.png"
        print(f"{path}: {path.stat().st_size:,} bytes")
        assert path.stat().st_size < new_user.PICTURE_BYTES_MAX


if __name__ == "__main__":
    main()
