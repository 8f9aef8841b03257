"""A database whose rollups stand where a test wants them."""

import pytest

from cluster import database
from writer import rollup_steps


@pytest.fixture
async def conn(database_url):
    """As the writer's rollups have it."""
    conn = await database.connect(database_url)
    await conn.execute(rollup_steps.SESSION)
    yield conn
    await conn.close()
