"""What every role of a cluster shares: configuration, messages, sockets, the core/driver pair, the command line.

This package imports no other package of the project.  ``coordinator``, ``worker`` and ``writer`` import only this one;
the roles meet on the wire.
"""

from typing import TYPE_CHECKING

__version__: str  # read when it is asked for: that costs as much as the rest of `cluster --help`

if not TYPE_CHECKING:  # mypy would take every name for one of the package

    def __getattr__(name: str) -> str:
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import version  # noqa: PLC0415

        return globals().setdefault(name, version("ringpoll"))
