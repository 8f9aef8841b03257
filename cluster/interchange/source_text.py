"""Bytes of a file as text: UTF-8, with or without a byte order mark, of bounded size.  Pure."""

from cluster.errors import InvalidInputError

FILE_BYTES_MAX = 256 << 20


def decoded(raw: bytes, where: str) -> str:
    """Raises InvalidInputError in words for people."""
    if len(raw) > FILE_BYTES_MAX:
        raise InvalidInputError(f"{where}: larger than {FILE_BYTES_MAX >> 20} MiB; split it")
    if raw[:2] in {b"\xff\xfe", b"\xfe\xff"}:
        raise InvalidInputError(f"{where}: is UTF-16; save it as UTF-8")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InvalidInputError(f"{where}: line {line} is not UTF-8 text") from error
