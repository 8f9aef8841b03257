"""Fixtures of the integration suite: a target, a short data directory, clusters that are ended in every case."""

import contextlib
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.integration.harness import Cluster, Sql
from tests.integration.target import Target


@pytest.fixture
def target():
    with Target() as running:
        yield running


@pytest.fixture
def data_dir():
    """Short, because socket paths are bounded."""
    base = Path(tempfile.mkdtemp(prefix="rp-"))
    yield base / "d"
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture
def sql(database_url):
    connection = Sql(database_url)
    yield connection
    connection.close()


@pytest.fixture
def make_cluster(data_dir, database_url):
    """``make_cluster(**options)``: a started, ready cluster on this test's database."""
    with contextlib.ExitStack() as stack:

        def make(*, ready=True, **options):
            options.setdefault("database_url", database_url)
            cluster = Cluster(options.pop("data_dir", data_dir), **options)
            stack.callback(cluster.end)
            cluster.start()
            return cluster.wait_ready() if ready else cluster

        yield make
