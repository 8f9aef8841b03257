"""``python -m writer``: the writer as a process, configured by its environment (see cluster.config)."""

import sys

from cluster import config, logs, runtime
from writer.service import main

if __name__ == "__main__":
    settings = config.from_environ(role="writer")
    logs.setup(settings)
    sys.exit(runtime.run_role(settings, main))
