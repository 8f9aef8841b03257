"""A WAL directory with small segments.  Property tests here are not timed: the machine may be busy."""

import pytest
from hypothesis import settings

from tests.wal.streams import STREAM, Source, directory

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


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
