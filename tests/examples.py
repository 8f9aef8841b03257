"""How many examples the largest searches take: all with TEST_EXAMPLES=all, as in .ci/run, else a quarter."""

import os

ALL = os.environ.get("TEST_EXAMPLES") == "all"
SHARE = 4


def examples(count):
    return count if ALL else count // SHARE
