"""The command line on a database, and what the tests of all formats ask of a reader."""

import asyncpg
import pytest

from tests.cli.conftest import cluster, data_dir  # noqa: F401 - fixtures
from tests.conftest import run_apart


class Table:
    """`cluster` with a database, and rows of ``projects`` written and read behind its back."""

    def __init__(self, run, url):
        self.url = url
        self._run = run

    def __call__(self, *arguments):
        return self._run(*arguments, "--database-url", self.url)

    def sql(self, *statements):
        async def execute():
            conn = await asyncpg.connect(self.url)
            try:
                return [await conn.fetch(statement) for statement in statements]
            finally:
                await conn.close()

        return run_apart(execute)

    def rows(self, columns="*"):
        return [dict(row) for row in self.sql(f"SELECT {columns} FROM projects ORDER BY id")[0]]


@pytest.fixture
def table(cluster, database_url):  # noqa: F811 - the fixture
    return Table(cluster, database_url)
