"""References in texts to secrets that the database does not have: how they are written.  Pure.

In header values, ``basic_auth`` and ``bearer_token`` a worker replaces, for each poll:

    ${NAME}           the environment variable RINGPOLL_SECRET_NAME of the worker
    ${file:NAME}      the content of the file NAME in the directory ``secrets_dir``, less a line end
    ${sealed:TOKEN}   what `cluster secret seal` made of a value; the key is the file KEY_FILE in ``secrets_dir``
    $${               ${

Nothing else of the environment or of the disk can be named: whoever may write a project could send it to a server of
their own.  What a reference stands for is for ``cluster.secret_values`` to find.
"""

import re

from cluster.errors import InvalidInputError

KEY_FILE = "sealing.key"

REFERENCE = re.compile(r"\$\$\{|\$\{([^}]*)(\}?)")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
SECRET_FILE = re.compile(r"file:([A-Za-z0-9_-][A-Za-z0-9._-]{0,127})")
SEALED = re.compile(r"sealed:([A-Za-z0-9_-]{64,}={0,2})")


def has_reference(text: str) -> bool:
    return "${" in text


def expect_references(name: str, text: str) -> None:
    """That each reference in a field is one; whether it stands for something is for a worker to find out."""
    for match in REFERENCE.finditer(text):
        if match[1] is not None and not (match[2] and is_reference(match[1])):
            raise InvalidInputError(
                f"{name}: a ${{...}} must be ${{NAME}}, ${{file:NAME}} or ${{sealed:TOKEN}}; write $${{ for ${{ itself"
            )


def is_reference(inside: str) -> bool:
    if inside == f"file:{KEY_FILE}":
        return False
    return any(pattern.fullmatch(inside) for pattern in (VARIABLE, SECRET_FILE, SEALED))
