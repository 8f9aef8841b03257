"""``python run_supervisor.py [--demo]``: a supervisor like that of `cluster up`, but its roles are fake_role.py."""

import errno
import itertools
import os
import sys
from pathlib import Path

from cluster import config, runtime
from cluster.errors import ClusterError
from cluster.supervisor.service import supervise

FAKE_ROLE = Path(__file__).with_name("fake_role.py")


runtime.ORPHAN_EXTRA_S = float(os.environ.get("FAKE_ORPHAN_EXTRA_S", runtime.ORPHAN_EXTRA_S))

LOCK_WRITES = int(os.environ.get("FAKE_LOCK_WRITES", "1000"))  # then the disk is full


def write_while_there_is_room(*args, _write=os.pwrite, _count=itertools.count(1)):  # noqa: B008 - one for all calls
    if next(_count) > LOCK_WRITES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return _write(*args)


os.pwrite = write_while_there_is_room


def fake(role, name):
    return [sys.executable, str(FAKE_ROLE), role, name]


try:
    sys.exit(
        supervise(
            config.load({}, os.environ),
            demo="--demo" in sys.argv,
            announce=lambda line: print(line, flush=True),
            command=fake,
        )
    )
except ClusterError as error:
    sys.stderr.write(f"Error: {error}\n")
    sys.exit(int(error.exit_code))
