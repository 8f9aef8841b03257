"""A WAL directory with small segments."""

import pytest

from tests.wal.streams import STREAM, Source, directory


@pytest.fixture
def wal(tmp_path):
    made = directory(tmp_path)
    yield made
    made.close()


@pytest.fixture
def log(wal):
    return wal.create(STREAM)


@pytest.fixture
def source():
    return Source()
