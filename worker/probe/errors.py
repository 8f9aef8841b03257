"""The error codes of a poll, what each means, and how the exceptions of libraries become one of them.

A code is for programs, a message for people: it names the host, what was being done, and the fact, in one printable
line of at most ``MESSAGE_MAX`` characters, and never an exception's own text.  Which error number is which code, and
which words, is a table; nothing here matches on texts.  ``ERROR_CODES`` is the whole list: README has a row for each.
"""

import errno
import os
import socket
import ssl
from collections.abc import Sequence
from typing import Literal, get_args

ErrorCode = Literal[
    "dns",
    "blocked",
    "connect_refused",
    "connect_unreachable",
    "connect_timeout",
    "tls_verify",
    "tls_expired",
    "tls_other",
    "read_timeout",
    "total_timeout",
    "closed",
    "reset",
    "protocol",
    "too_many_redirects",
    "body_limit",
    "status_mismatch",
    "assertion_failed",
    "invalid_request",
    "local",
]

ERROR_CODES: tuple[ErrorCode, ...] = get_args(ErrorCode)

# What of this machine a poll with the code ``local`` came to grief on.  Of another failure: what of it may be to blame.
LocalCause = Literal[
    "descriptors",
    "ports",
    "memory",
    "permission",  # a firewall or a policy of this machine
    "network",
    "resolver",
    "stall",  # the loop that polls stood still
    "removed",  # the project was, between a redirect and following it
    "fault",  # a bug in the prober
    "other",
]

LOCAL_CAUSES: tuple[LocalCause, ...] = get_args(LocalCause)

MEANINGS: dict[ErrorCode, str] = {
    "dns": "the host's name could not be resolved, or not in time, or not to an address of the project's IP version",
    "blocked": "an address or a scheme that must not be polled; nothing was sent there",
    "connect_refused": "nothing listens on that port",
    "connect_unreachable": "there is no way to the host, or its proxy refuses to lead there",
    "connect_timeout": "the time-out, or that for connecting, passed while connecting, TLS handshake included",
    "tls_verify": "the certificate is not one to trust for this host",
    "tls_expired": "the certificate, or one it rests on, has expired",
    "tls_other": "the TLS handshake or the encrypted connection failed in another way",
    "read_timeout": "the request was sent and the time-out passed before the answer was complete",
    "total_timeout": "the time-out passed over several redirects, or before the request was sent",
    "closed": "the peer closed the connection before the answer was complete",
    "reset": "the peer reset the connection",
    "protocol": "what came back is not a valid HTTP answer, or redirects to where HTTP can't follow",
    "too_many_redirects": "more redirects than are followed",
    "body_limit": "the body was longer than is read, and without its end nothing can be said",
    "status_mismatch": "a complete answer, with a status that is not expected",
    "assertion_failed": "a complete answer with an expected status, of which an assertion does not hold",
    "invalid_request": "the project's fields, or what is in its TLS files, can't be made into a request",
    "local": "this machine could not make the poll; it says nothing about the target (status unknown)",
}

MESSAGE_MAX = 500

_LOCAL: dict[int | None, LocalCause] = {
    errno.EMFILE: "descriptors",
    errno.ENFILE: "descriptors",
    errno.ENOBUFS: "memory",
    errno.ENOMEM: "memory",
    errno.EADDRNOTAVAIL: "ports",
    errno.EADDRINUSE: "ports",
    errno.EACCES: "permission",
    errno.EPERM: "permission",
}
_RESET = (errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED)

_BY_ERRNO_CONNECTING: dict[int | None, ErrorCode] = {
    **dict.fromkeys(_LOCAL, "local"),
    **dict.fromkeys(_RESET, "reset"),
    errno.ECONNREFUSED: "connect_refused",
    errno.ETIMEDOUT: "connect_timeout",
}
_MOST_TELLING: tuple[ErrorCode, ...] = ("local", "connect_refused", "reset", "connect_timeout", "connect_unreachable")
_BY_ERRNO_EXCHANGING: dict[int | None, ErrorCode] = {
    errno.ENOBUFS: "local",
    errno.ENOMEM: "local",
    errno.ETIMEDOUT: "read_timeout",
    errno.EHOSTUNREACH: "connect_unreachable",
    errno.ENETUNREACH: "connect_unreachable",
}
_LOCAL_LOOKUP = frozenset({socket.EAI_MEMORY, socket.EAI_SYSTEM})
_LOOKUP_WORDS: dict[int | None, str] = {
    getattr(socket, name): f"{words} ({name})"
    for name, words in (
        ("EAI_NONAME", "no such name"),
        ("EAI_NODATA", "the name has no address"),
        ("EAI_ADDRFAMILY", "the name has no address of a kind this machine uses"),
        ("EAI_AGAIN", "no answer for the time being"),
        ("EAI_FAIL", "the name server failed"),
        ("EAI_MEMORY", "out of memory"),
    )
    if hasattr(socket, name)
}

# X509_V_ERR_*, which Python has no names for.
_CERTIFICATE_EXPIRED = 10
_CERTIFICATE_WORDS = {
    9: "it, or one it rests on, is not valid yet",
    _CERTIFICATE_EXPIRED: "it, or one it rests on, has expired",
    18: "it is self-signed",
    19: "it rests on a self-signed one that is not trusted here",
    20: "its issuer is not known here",
    21: "its issuer is not known here, and it came alone",
    26: "it is not for servers",
    62: "it is for other names",
    64: "it is for other addresses",
    66: "its key is too weak",
}


class ProbeError(Exception):
    """One poll can't go on: ``code`` for programs, ``message`` for people.

    ``cause``: of the code ``local`` what of this machine it was; of another what of this machine it may have been, None
    when it can't have been.
    """

    def __init__(self, code: ErrorCode, message: str, cause: LocalCause | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code: ErrorCode = code
        self.message = printable(message)
        self.cause: LocalCause | None = "other" if code == "local" and cause is None else cause


def printable(text: str) -> str:
    """One line of at most MESSAGE_MAX characters, whatever a server put into it."""
    line = " ".join(text[: 4 * MESSAGE_MAX].split())
    if not line.isprintable():
        line = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in line)
    return line if len(line) <= MESSAGE_MAX else line[: MESSAGE_MAX - 3] + "..."


def reason(error: OSError) -> str:
    """The system's words for an error number, or that there were several."""
    if error.errno is None:
        return "for a reason the system gave no number"
    return f"{os.strerror(error.errno).lower()} ({errno.errorcode.get(error.errno, error.errno)})"


def from_lookup(error: OSError, host: str) -> ProbeError:
    """A failed ``getaddrinfo``."""
    if isinstance(error, socket.gaierror) and error.errno not in _LOCAL_LOOKUP:
        return ProbeError(
            "dns",
            f"looking up {host}: {_LOOKUP_WORDS.get(error.errno, f'no answer ({error.errno})')}",
            "resolver" if error.errno == socket.EAI_AGAIN else None,  # anything else is a name server's answer
        )
    words = _LOOKUP_WORDS.get(error.errno, "a system error") if isinstance(error, socket.gaierror) else reason(error)
    return ProbeError(
        "local",
        f"looking up {host} failed on this machine: {words}",
        "memory" if error.errno == socket.EAI_MEMORY else _LOCAL.get(error.errno, "resolver"),
    )


def from_connect(error: OSError, peer: str, failures: Sequence[OSError] = ()) -> ProbeError:
    """A failed TCP connect; ``failures``: of all the addresses that were tried, ``error`` among them."""
    code = _BY_ERRNO_CONNECTING.get(error.errno, "connect_unreachable")
    words = ", ".join(dict.fromkeys(reason(each) for each in (error, *failures)))
    if code == "local":
        return ProbeError(code, f"this machine can't connect to {peer}: {words}", _blame(code, error))
    return ProbeError(code, f"connecting to {peer}: {words}", _blame(code, error))


def most_telling(failures: Sequence[OSError]) -> OSError | None:
    """Of several addresses that failed: what this machine lacks comes first, then what the host itself said."""
    return min(
        failures,
        key=lambda error: _MOST_TELLING.index(_BY_ERRNO_CONNECTING.get(error.errno, "connect_unreachable")),
        default=None,
    )


def from_handshake(error: OSError, peer: str) -> ProbeError:
    """A TLS handshake that did not succeed."""
    if isinstance(error, ssl.SSLCertVerificationError):
        number = error.verify_code
        words = _CERTIFICATE_WORDS.get(number, f"verify error {number} of OpenSSL")
        code: ErrorCode = "tls_expired" if number == _CERTIFICATE_EXPIRED else "tls_verify"
        return ProbeError(code, f"certificate of {peer} not accepted: {words}")
    if isinstance(error, ssl.SSLError):
        return ProbeError("tls_other", f"TLS handshake with {peer}: {_ssl_reason(error)}")
    if error.errno is None:
        return ProbeError("tls_other", f"TLS handshake with {peer}: the peer closed the connection")
    code = _BY_ERRNO_EXCHANGING.get(error.errno, "reset")
    return ProbeError(
        "connect_timeout" if code == "read_timeout" else code,
        f"TLS handshake with {peer}: {reason(error)}",
        _blame(code, error),
    )


def from_lost(error: BaseException | None, peer: str, doing: str) -> ProbeError:
    """A connection that ended during an exchange; ``error`` is None for a clean close."""
    if isinstance(error, ssl.SSLError):
        return ProbeError("tls_other", f"TLS with {peer} failed {doing}: {_ssl_reason(error)}")
    if isinstance(error, OSError) and error.errno is not None:
        code = _BY_ERRNO_EXCHANGING.get(error.errno, "reset")
        return ProbeError(code, f"connection to {peer} lost {doing}: {reason(error)}", _blame(code, error))
    return ProbeError("closed", f"{peer} closed the connection {doing}")


def _blame(code: ErrorCode, error: OSError) -> LocalCause | None:
    """What of this machine it was, or may have been, that a socket failed."""
    if code == "local":
        return _LOCAL.get(error.errno)
    return "network" if code in {"connect_unreachable", "connect_timeout", "read_timeout"} else None


def _ssl_reason(error: ssl.SSLError) -> str:
    """OpenSSL's name for what is wrong; those of alerts begin with the protocol that once introduced them."""
    name = error.reason or "FAILED_WITHOUT_A_REASON"
    _, alert, refusal = name.partition("_ALERT_")
    words = (refusal or name).replace("_", " ").lower()
    return f"the peer refused it ({words})" if alert else words


def mismatch(peer: str, status_code: int | None, expected: str) -> str:
    """The message of a complete answer whose status is not expected; a set in a row written in SQL may be long."""
    return printable(f"{peer} answered {status_code}, expected {expected}")


def blunder(peer: str) -> ProbeError:
    """A bug of ours, which the log has."""
    return ProbeError("local", f"polling {peer}: error in the prober itself, its worker's log has it", "fault")
