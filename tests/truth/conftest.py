"""Clusters and their database as in the integration suite."""

from tests.integration.conftest import data_dir, make_cluster, sql  # noqa: F401 - fixtures
