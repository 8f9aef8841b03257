"""``python -m coordinator``: the coordinator as a process, configured by its environment (see cluster.config)."""

import sys

from cluster import runtime
from coordinator.core import CoordinatorCore
from coordinator.service import serve

if __name__ == "__main__":
    sys.exit(runtime.role_process("coordinator", lambda context: serve(context, CoordinatorCore)))
