"""``python -m coordinator``: the coordinator as a process, configured by its environment (see cluster.config)."""

import sys

from cluster import config, logs, runtime
from coordinator.core import CoordinatorCore
from coordinator.service import serve

if __name__ == "__main__":
    settings = config.from_environ(role="coordinator")
    logs.setup(settings)
    sys.exit(runtime.run_role(settings, lambda context: serve(context, CoordinatorCore)))
