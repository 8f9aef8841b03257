"""``cluster`` as a command of a shell: a script that runs this checkout."""

import os
import sys


def path_with_cluster(directory):
    """A PATH with the command before everything else; it is made below the directory."""
    command = directory / "bin" / "cluster"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m cluster "$@"\n')
    command.chmod(0o755)
    return f"{command.parent}:{os.environ['PATH']}"
