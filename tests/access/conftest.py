"""Fixtures of the access suite."""

import pytest

from cluster import database


@pytest.fixture
async def conn(database_url):
    conn = await database.connect(database_url)
    yield conn
    await conn.close()
