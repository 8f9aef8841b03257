"""``python -m worker``: one worker in this process, configured by the environment."""

import sys

from cluster import config, logs, runtime
from worker.service import serve


def main() -> int:
    settings = config.from_environ()
    logs.setup(settings)
    return runtime.run_role(settings, serve)


if __name__ == "__main__":
    sys.exit(main())
