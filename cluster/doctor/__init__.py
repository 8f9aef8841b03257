"""The checks of ``cluster doctor``: ``gathering`` asks this machine, ``judging`` decides on the facts and is pure."""
