"""With the README alone: its command in an empty directory, three URLs added on the page, all of them up; and the two
pictures that the README shows, made on the way.
"""

import asyncio
import shutil
import struct
import tempfile
import time
from pathlib import Path

import pytest

from tests.docs.repository_facts import ROOT
from tests.page import new_user
from tests.page.conftest import chromium

pytestmark = pytest.mark.asyncio(loop_scope="package")

DEADLINE_S = 300.0  # "under 5 minutes"


def png_size(path):
    head = path.read_bytes()[:24]
    assert head.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", head[16:24])


@pytest.fixture
def fresh():
    chromium()
    base = Path(tempfile.mkdtemp(prefix="rp-"))
    base.chmod(0o755)  # as root PostgreSQL runs under another account, which must reach it
    cluster = new_user.NewUser(base / "d")
    try:
        yield cluster
    finally:
        cluster.end()
        shutil.rmtree(base, ignore_errors=True)


async def test_from_nothing_to_a_page_with_three_own_urls(fresh, open_page, tmp_path):
    began = time.monotonic()
    await asyncio.to_thread(lambda: fresh.start().wait_ready(60))
    with new_user.own_sites() as sites:
        page = (await open_page(f"http://{fresh.http}", "/")).page
        for name, url in sites.items():
            await new_user.add(page, name, url)
        await new_user.see_three_up(page)
        took_s = time.monotonic() - began
        print(f"from the command to three URLs that are up: {took_s:.1f} s")
        assert took_s < DEADLINE_S
        await new_user.take_pictures(page, tmp_path)
        for name in new_user.PICTURES:
            assert png_size(tmp_path / f"{name}.png")[0] == new_user.SIZE["width"]
        await page.close()
        await asyncio.to_thread(fresh.stop_cleanly)
    assert not fresh.complaints()


@pytest.mark.parametrize("name", new_user.PICTURES)
async def test_the_readme_shows_the_pictures(name):
    path = ROOT / "deploy/screenshots" / f"{name}.png"
    assert f"(deploy/screenshots/{name}.png)" in new_user.section()
    assert path.stat().st_size < new_user.PICTURE_BYTES_MAX
    assert png_size(path)[0] == new_user.SIZE["width"]
