"""``python -m writer``: the writer as a process, configured by its environment (see cluster.config)."""

import sys

from cluster import runtime
from writer.service import main

if __name__ == "__main__":
    sys.exit(runtime.role_process("writer", main))
