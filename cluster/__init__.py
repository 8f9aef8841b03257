"""What every role of a cluster shares: configuration, messages, sockets, the core/driver pair, the command line.

This package imports no other package of the project.  ``coordinator``, ``worker`` and ``writer`` import only this one;
the roles meet on the wire.
"""

from importlib.metadata import version

__version__ = version("ringpoll")
