"""What someone may do, how a token is written, and which names tokens and users have.  Pure.

A scope covers those before it: ``admin`` may do what ``write`` may, and that what ``read`` may.  A token is
``rp_<id>_<secret>``: the id finds its row, the secret is compared; the prefix lets scanners of published code find one.
"""

import re
from typing import Literal, TypeAlias

import msgspec

Scope: TypeAlias = Literal["read", "write", "admin"]
RouteScope: TypeAlias = Literal["none", "read", "write", "admin"]

SCOPES: tuple[Scope, ...] = ("read", "write", "admin")
TOKEN_PREFIX = "rp"  # noqa: S105 - the part that all of them share
TOKEN_ID_BYTES = 6
TOKEN_SECRET_BYTES = 32
NAME_RULE = "1 to 63 letters, digits, '.', '_', '@' or '-', the first of them a letter or a digit"

_TOKEN = re.compile(
    rf"{TOKEN_PREFIX}_([0-9a-f]{{{2 * TOKEN_ID_BYTES}}})_([0-9a-f]{{{2 * TOKEN_SECRET_BYTES}}})", re.ASCII
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,62}", re.ASCII)


class TokenParts(msgspec.Struct, frozen=True):
    id: str
    secret: str


def covers(held: Scope, wanted: RouteScope) -> bool:
    """Whether who holds one scope may do what asks for the other."""
    return wanted == "none" or SCOPES.index(held) >= SCOPES.index(wanted)


def covered_by(held: Scope) -> list[Scope]:
    """A scope and all that it covers."""
    return list(SCOPES[: SCOPES.index(held) + 1])


def write_token(parts: TokenParts) -> str:
    return f"{TOKEN_PREFIX}_{parts.id}_{parts.secret}"


def parse_token(text: str) -> TokenParts | None:
    """None: it is no token of ours, whatever the database holds."""
    found = _TOKEN.fullmatch(text)
    return None if found is None else TokenParts(found[1], found[2])


def bearer_of(authorization: str) -> str | None:
    """What an Authorization header carries as a bearer token; None: it is of another kind."""
    scheme, _, rest = authorization.strip().partition(" ")
    return rest.strip() if scheme.lower() == "bearer" else None


def is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None
