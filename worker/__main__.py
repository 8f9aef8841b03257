"""``python -m worker``: one worker as a process, configured by its environment (see cluster.config)."""

import sys

from cluster import runtime
from worker.service import serve

if __name__ == "__main__":
    sys.exit(runtime.role_process("worker", serve))
