"""The coordinator's HTTP port."""
