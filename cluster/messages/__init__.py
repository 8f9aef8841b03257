"""The wire: msgspec Structs, one tagged union per direction, encoders and decoders built once.

``control`` is the coordinator's socket (workers, writer, supervisor), ``results`` the writer's, ``admin`` the one for
people and programs.  PROTOCOL.md beside this file describes the exchanges.
"""

import msgspec

# Whatever a decoder raises on bytes of somebody else's choosing: text that is not UTF-8 is a plain ValueError.
UNDECODABLE = (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError)
