"""The coordinator's pure parts in virtual time."""
