"""``python -m cluster``: the command line, for where its script isn't on the path."""

from cluster.cli import main

main()
