"""The worker's pure parts in virtual time."""
