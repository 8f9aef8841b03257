"""Variables that look like a misspelt one of ours: one line of warning each, since they would be ignored in silence.

Others that begin with CLUSTER_ are none of our business (Kubernetes makes some for a service of that name).
"""

import difflib
from collections.abc import Iterator, Mapping

from cluster import config

SIMILAR = 0.75  # of the part that follows CLUSTER_, as difflib counts


def misspelt_variables(environ: Mapping[str, str]) -> Iterator[str]:
    """A line for people for each of them."""
    known = {name.removeprefix(config.PREFIX): name for name in config.VARIABLES if name.startswith(config.PREFIX)}
    for name in sorted(environ):
        if not name.startswith(config.PREFIX) or name in config.VARIABLES or not environ[name]:
            continue
        near = difflib.get_close_matches(name.removeprefix(config.PREFIX), known, n=1, cutoff=SIMILAR)
        if near:
            yield f"the variable {name} is not known and ignored; did you mean {known[near[0]]}?"
