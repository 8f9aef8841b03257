"""The situations: what a server does, what we are asked to poll, and what a result must say of it.

A case states our answer; it is the same for both engines.  ``differs`` says why we are right where curl says otherwise,
and is there exactly where it does: both are checked.  ``python -m tests.truth`` prints all of it as a table.

Cases come in families, one function each.  Names are unique, and say the situation, not the outcome.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from tests.probe.probe_scripts import Request, Script
from tests.truth.servers import (
    Server,
    answers,
    before_the_body,
    deaf,
    endless,
    on_first_bytes,
    once,
    pieces,
    routes,
    turns,
    unasked,
    wants,
)

SHORT_MS = 500  # for what can only end with its time
AMPLE_MS = 5_000

Names = dict[str, tuple[str, ...] | str]  # addresses, or the getaddrinfo failure, or "hang"


@dataclass(frozen=True)
class Case:
    name: str
    server: Server | None = None
    status_code: int | None = 200
    error_code: str | None = None
    size: int | None = None
    differs: str = ""
    says: str = ""  # part of the message
    requests: int | None = None  # that the server has, of either engine
    # what is polled
    url: str = "http://127.0.0.1:{port}/"
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()
    body: str | None = None
    expected: str = "200"
    timeout_ms: int = AMPLE_MS
    follow: bool = True
    body_limit_bytes: int = 1 << 20
    polls: int = 1  # the last one counts
    pause_s: float = 0.03  # between them
    # its world
    other: Server | None = None
    place: Literal["", "refusing", "mute", "mute beside"] = ""
    names: Names = field(default_factory=lambda: {"good.test": ("127.0.0.1",)})

    def code(self) -> str | None:
        """The error code of the outcome: what is complete may still have a status that is not expected."""
        if self.error_code is None and str(self.status_code) != self.expected:
            return "status_mismatch"
        return self.error_code

    def needs_ipv6(self) -> bool:
        found = [self.url, *(address for each in self.names.values() for address in each if not isinstance(each, str))]
        return any("::1" in each or "[0:" in each for each in found)

    def is_complete(self) -> bool:
        return self.error_code in {None, "status_mismatch"}

    def shown(self) -> str:
        status = "" if self.status_code is None else f"{self.status_code}, "
        if self.is_complete():
            return f"{status}{'any number of' if self.size is None else self.size} bytes"
        return f"{status}{self.error_code}"


def complete(name: str, sent: bytes | Script, status_code: int = 200, size: int | None = None, **more: object) -> Case:
    """A complete answer, of an expected status unless said otherwise."""
    more.setdefault("expected", str(status_code))
    server = Server(answers(sent) if isinstance(sent, bytes) else sent)
    return Case(name, server, status_code, size=size, **more)


def fails(
    name: str, sent: bytes | Script | None, error_code: str, status_code: int | None = None, **more: object
) -> Case:
    server = None if sent is None else Server(answers(sent) if isinstance(sent, bytes) else sent)
    return Case(name, server, status_code, error_code, **more)


def head(*lines: str, status: str = "HTTP/1.1 200 OK") -> bytes:
    return "".join(f"{line}\r\n" for line in (status, *lines, "")).encode("latin-1")


def with_body(body: bytes, *lines: str, status: str = "HTTP/1.1 200 OK") -> bytes:
    return head(*lines, f"Content-Length: {len(body)}", status=status) + body


OK = with_body(b"ok")
CHUNKED = head("Transfer-Encoding: chunked")

# ---- why we say otherwise -------------------------------------------------------------------------------------------

OWN_LIMIT = "reading ends at the body limit, which is not a failure by itself; curl was not told of one"
WHOLE_HEAD = "a status counts with its whole head: one that is cut off, late or malformed is no answer"
NO_ANSWER_YET = "an informational answer is not the answer (RFC 9110, 15.2): there is no status yet"
LAST_HOP = "the status is that of the last answer of the last hop, which had none; curl goes on to show the redirect's"
NOT_BY_ITSELF = "only 301, 302, 303, 307 and 308 are followed (RFC 9110, 15.4); curl follows any 3xx with a Location"
STATUS_LINE = "a status line is HTTP/ digit . digit blank three digits blank (RFC 9112, 4); curl takes it all the same"
NAME_IS_A_TOKEN = "a header's name is a word, and right behind it is the colon (RFC 9112, 5.1); curl takes any line"
DOUBLED = "something doubled it, and RFC 9110, 8.6 lets a recipient refuse it; curl takes one of them"
LENGTH_IS_DIGITS = "a length is digits, given once, or the end is anybody's guess (RFC 9112, 6.3); curl guesses"
MANY_HEADERS = (
    "a head has a limit, so that one answer can't fill the memory: 64 KiB a line, 1,000 lines, 256 KiB in all"
)
UNDECODED = (
    "nothing is decoded, nothing can fail in it: the body's bytes are counted as they came; curl decodes codings"
)
LENIENT_START = "line breaks before a status line are passed over: they end nothing and begin nothing"
SWITCHED = "a 101 is a final answer: behind it another protocol begins, and curl wants HTTP"
NO_GUESS = "a project's URL is polled as written or not at all; curl guesses a scheme"
NOT_SENDABLE = "it can't be sent as one request, and is said so before anything is sent; curl tries to connect"
LOCATION_HOST = "http: has a host (RFC 9110, 4.2.1); curl takes the path for one"


# ---- status lines ---------------------------------------------------------------------------------------------------

STATUSES = (
    *range(200, 209),
    226,
    300,
    *range(304, 307),
    *range(400, 419),
    *range(421, 432),
    451,
    499,
    *range(500, 509),
    510,
    511,
    520,
    530,
    599,
)


def plain_statuses() -> Iterator[Case]:
    for status in STATUSES:
        empty = status in {204, 205, 304}
        sent = head(status=f"HTTP/1.1 {status} X") if empty else with_body(b"body", status=f"HTTP/1.1 {status} X")
        if status == 205:
            sent = with_body(b"", status="HTTP/1.1 205 X")
        yield complete(f"status {status}", sent, status, 0 if empty else 4)
    for status in (204, 404, 500):
        sent = head("Content-Length: 0" if status != 204 else "X: y", status=f"HTTP/1.1 {status} X")
        yield Case(
            f"status {status} where 200 is expected",
            Server(answers(sent)),
            status,
            "status_mismatch",
            0,
            says=f"answered {status}, expected 200",
        )


def status_lines() -> Iterator[Case]:
    def line(written: str | bytes, then: bytes = b"\r\nContent-Length: 2\r\n\r\nok") -> bytes:
        return (written.encode() if isinstance(written, str) else written) + then

    for name, written in [
        ("no reason", "HTTP/1.1 200 "),
        ("no reason and no blank", "HTTP/1.1 200"),
        ("a reason in UTF-8", "HTTP/1.1 200 Größe ✓"),
        ("a reason in Latin-1", "HTTP/1.1 200 Gr\xf6\xdfe".encode("latin-1")),
        ("a reason that is a number", "HTTP/1.1 200 404"),
        ("a reason with a tab", "HTTP/1.1 200 O\tK"),
        ("a reason of 10,000 bytes", "HTTP/1.1 200 " + "x" * 10_000),
        ("HTTP/1.0", "HTTP/1.0 200 OK"),
    ]:
        yield complete(f"status line: {name}", line(written), 200, 2)
    taken_by_curl = {
        "no blank behind the status",
        "HTTP/2",
        "http/1.1 in small letters",
        "two blanks before the status",
    }
    for name, written in [
        ("a status of two digits", "HTTP/1.1 20 OK"),
        ("a status of one digit", "HTTP/1.1 2 OK"),
        ("a status of four digits", "HTTP/1.1 2000 OK"),
        ("a letter in the status", "HTTP/1.1 2x0 OK"),
        ("a negative status", "HTTP/1.1 -200 OK"),
        ("a status with a sign", "HTTP/1.1 +200 OK"),
        ("no status", "HTTP/1.1 OK"),
        ("nothing but the version", "HTTP/1.1"),
        ("no blank behind the status", "HTTP/1.1 200OK"),
        ("no version", "HTTP 200 OK"),
        ("no slash", "HTTP1.1 200 OK"),
        ("HTTP/1", "HTTP/1 200 OK"),
        ("HTTP/11.1", "HTTP/11.1 200 OK"),
        ("HTTP/1.10", "HTTP/1.10 200 OK"),
        ("HTTP/1.1.1", "HTTP/1.1.1 200 OK"),
        ("HTTP/1.x", "HTTP/1.x 200 OK"),
        ("HTTP/2", "HTTP/2 200 OK"),
        ("HTTP/3", "HTTP/3 200 OK"),
        ("HTTP/0.9", "HTTP/0.9 200 OK"),
        ("HTTP/1.2", "HTTP/1.2 200 OK"),
        ("http/1.1 in small letters", "http/1.1 200 OK"),
        ("HTTPS/1.1", "HTTPS/1.1 200 OK"),
        ("ICY, as of SHOUTcast", "ICY 200 OK"),
        ("RTSP", "RTSP/1.0 200 OK"),
        ("SIP", "SIP/2.0 200 OK"),
        ("two blanks before the status", "HTTP/1.1  200 OK"),
        ("a tab before the status", "HTTP/1.1\t200 OK"),
        ("a blank before it", " HTTP/1.1 200 OK"),
        ("a request line", "GET / HTTP/1.1"),
    ]:
        why = STATUS_LINE if name in taken_by_curl else ""
        yield fails(f"status line: {name}", line(written), "protocol", differs=why)
    yield complete("status line: HTTP/2.0 in text", line("HTTP/2.0 200 OK"), 200, 2)
    yield complete(
        "status line: a NUL in the reason",
        line("HTTP/1.1 200 O\0K"),
        200,
        2,
        differs="the reason is for people, and nothing depends on it (RFC 9112, 4); curl refuses any NUL",
    )
    for status in ("000", "099"):
        yield fails(f"status line: status {status}", line(f"HTTP/1.1 {status} X"), "protocol")
    for status in ("600", "999"):
        sent = Server(answers(line(f"HTTP/1.1 {status} X")))
        yield Case(f"status line: status {status}", sent, int(status), "status_mismatch", 2)
    for name, before in [("an empty line", b"\r\n"), ("two empty lines", b"\r\n\r\n")]:
        yield complete(f"status line: {name} before it", before + OK, 200, 2, differs=LENIENT_START)
    yield complete("status line: ends of lines without CR", b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", 200, 2)
    yield fails(
        "status line: ends of lines without LF",
        b"HTTP/1.1 200 OK\rContent-Length: 2\r\rok",
        "protocol",
        differs="a CR alone ends no line (RFC 9112, 2.2), which is known at once; curl waits for an LF",
        timeout_ms=1_000,
    )


def other_protocols() -> Iterator[Case]:
    for name, written in [
        ("SSH", b"SSH-2.0-OpenSSH_9.2p1\r\n"),
        ("SMTP", b"220 mail.test ESMTP ready\r\n"),
        ("FTP", b"220 Welcome\r\n"),
        ("POP3", b"+OK ready\r\n"),
        ("IMAP", b"* OK IMAP4rev1 ready\r\n"),
        ("MySQL", b"\x4a\x00\x00\x00\x0a8.0.33\x00\x08\x00\x00\x00abcdefgh\x00"),
        ("telnet", b"\xff\xfd\x18\xff\xfd\x20login: "),
        ("VNC", b"RFB 003.008\n"),
    ]:
        yield fails(f"another protocol: {name}, which speaks first", unasked(written), "protocol", timeout_ms=1_000)
    for name, written in [
        ("Redis", b"-ERR wrong number of arguments for 'get' command\r\n"),
        ("memcached", b"ERROR\r\n"),
        ("a TLS alert", b"\x15\x03\x01\x00\x02\x02\x0a"),
        ("HTTP/0.9", b"<html><body>It works!</body></html>"),
        ("JSON", b'{"status": "ok"}\n'),
        ("HTTP/2 settings", b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64"),
        ("text", b"HTT, not P\r\n\r\n"),
        ("bytes of every value", bytes(range(256))),
        ("NUL bytes", bytes(64)),
        ("escape sequences", b"\x1b[31mred\x1b[0m\r\n\r\n"),
    ]:
        yield fails(f"another protocol: {name}", once(written, "close"), "protocol")


# ---- heads ----------------------------------------------------------------------------------------------------------


def heads() -> Iterator[Case]:
    def lines(*written: str | bytes) -> bytes:
        raw = b"".join((each.encode("latin-1") if isinstance(each, str) else each) + b"\r\n" for each in written)
        return b"HTTP/1.1 200 OK\r\n" + raw + b"Content-Length: 2\r\n\r\nok"

    for name, sent in [
        ("no blank behind the colon", lines("X:y")),
        ("a header without value", lines("X:")),
        ("blanks around a value", lines("X:  y \t ")),
        ("a value in Latin-1", lines("X: \xe9\xff")),
        ("a value in UTF-8", lines("X: größe ✓".encode())),
        ("a control character in a value", lines("X: a\x01b\x7f")),
        ("a header of 60,000 bytes", lines("X: " + "v" * 60_000)),
        ("200 headers of 300 bytes", lines(*(f"X-{number}: {'v' * 290}" for number in range(200)))),
        ("900 headers", lines(*(f"X-{number}: v" for number in range(900)))),
        ("a header twice", lines("X: a", "X: b", "Server: a", "Server: b")),
        ("50 cookies", lines(*(f"Set-Cookie: c{number}=v; Path=/" for number in range(50)))),
        ("every header name in capitals", OK.replace(b"Content-Length", b"CONTENT-LENGTH")),
        ("every header name in small letters", OK.replace(b"Content-Length", b"content-length")),
        ("a header name with an odd character", lines("X!#$%&'*+.^_`|~: y")),
        ("a folded header", lines("X: a", " b", "\tc")),
        ("Connection: close, and the connection stays", lines("Connection: close")),
        ("Upgrade offered", lines("Upgrade: h2c", "Connection: Upgrade")),
        ("Alt-Svc and HSTS", lines('Alt-Svc: h3=":443"', "Strict-Transport-Security: max-age=9")),
        ("a wrong date", lines("Date: yesterday", "Expires: -1")),
    ]:
        yield complete(f"head: {name}", sent, 200, 2)
    for name, sent in [
        ("a blank before the colon", lines("X : y")),
        ("a line without colon", lines("nonsense")),
        ("a header without name", lines(": y")),
        ("a blank in a header's name", lines("X Y: z")),
        ("a character that no name has", lines("X(Y): z")),
        ("a name outside ASCII", lines("X\xe9: z")),
        ("a NUL in a value", lines("X: a\0b")),
        ("a CR in a value", lines("X: a\rb")),
        ("a header of 70,000 bytes", lines("X: " + "v" * 70_000)),
        ("1,100 headers", lines(*(f"X-{number}: v" for number in range(1_100)))),
        ("300 KiB of headers", lines(*(f"X-{number}: {'v' * 1_000}" for number in range(300)))),
    ]:
        why = WHOLE_HEAD if "without colon" in name or "NUL" in name else NAME_IS_A_TOKEN
        if "CR in a value" in name:
            why = "a CR alone may not be in a value (RFC 9112, 2.2); curl takes it"
        elif "headers" in name or "bytes" in name:
            why = MANY_HEADERS
        yield fails(f"head: {name}", sent, "protocol", differs=why)
    yield complete(
        "head: a fold at the very beginning",
        lines(" X: y"),
        200,
        2,
        differs="a blank line's rest before the first header is passed over, as RFC 9112, 2.2 allows; curl gives up",
    )
    without_end = {"differs": MANY_HEADERS}
    many = endless(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 1_000)
    yield fails("head: headers without end", many, "protocol", **without_end)
    yield fails("head: one without end", endless(b"HTTP/1.1 200 OK\r\nX: ", b"v" * 8_192), "protocol", **without_end)
    one_by_one = [bytes([byte]) for byte in head("Content-Length: 2") + b"ok"]
    yield complete("head: byte by byte", pieces(*one_by_one, pause_s=0.001), 200, 2)
    yield complete("head: between CR and LF of its end a pause", pieces(OK[:-4], OK[-4:-3], OK[-3:]), 200, 2)


# ---- bodies with a length -------------------------------------------------------------------------------------------


def lengths() -> Iterator[Case]:
    def sized(*written: str, body: bytes = b"ok") -> bytes:
        return head(*(f"Content-Length: {each}" for each in written)) + body

    for size in (0, 1, 2, 1_000, 65_535, 65_536, 65_537, 500_000):
        yield complete(f"length: {size} bytes", with_body(b"x" * size), 200, size)
    for name, sent in [
        ("blanks around it", sized("  2\t ")),
        ("zeros before it", sized("0002")),
    ]:
        yield complete(f"length: {name}", sent, 200, 2)
    for name, written in [
        ("the same twice", ("2", "2")),
        ("two different", ("2", "3")),
        ("two in one line, the same", ("2, 2",)),
        ("two in one line, different", ("2, 3",)),
        ("a word", ("two",)),
        ("a sign", ("+2",)),
        ("negative", ("-2",)),
        ("hexadecimal", ("0x2",)),
        ("a fraction", ("2.0",)),
        ("digits and letters", ("2b",)),
        ("digits, a blank, digits", ("2 2",)),
        ("2^64", ("18446744073709551616",)),
        ("30 digits", ("9" * 30,)),
        ("nothing", ("",)),
    ]:
        why = DOUBLED if "the same" in name else LENGTH_IS_DIGITS
        yield fails(f"length: {name}", once(sized(*written), "close"), "protocol", differs=why)
    for name, written in [("2^63 - 1", "9223372036854775807"), ("2^63", "9223372036854775808"), ("one too many", "3")]:
        why = "so many bytes were announced and did not come; curl takes a number it can't hold for none"
        yield fails(
            f"length: {name}, and closed",
            once(sized(written), "close"),
            "closed",
            200,
            differs=why if name == "2^63" else "",
        )
    yield fails("length: bytes are missing, and it waits", once(sized("3")), "read_timeout", 200, timeout_ms=SHORT_MS)
    yield complete("length: more bytes than that", sized("2", body=b"okjunk"), 200, 2)
    yield complete("length: none of it, and more bytes", sized("0", body=b"junk"), 200, 0)
    yield complete("length: another answer behind it", OK + with_body(b"no", status="HTTP/1.1 500 X"), 200, 2)
    yield complete("length: a line break behind the body", OK + b"\r\n", 200, 2)
    yield complete("length: head and body apart", pieces(head("Content-Length: 4"), b"bo", b"dy"), 200, 4)
    yield complete("length: a 404 page", with_body(b"not here", status="HTTP/1.1 404 N"), 404, 8)


# ---- chunked bodies -------------------------------------------------------------------------------------------------


def chunks() -> Iterator[Case]:
    for name, written, size in [
        ("one", b"5\r\nhello\r\n0\r\n\r\n", 5),
        ("two", b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", 5),
        ("none", b"0\r\n\r\n", 0),
        ("in capitals", b"A\r\n0123456789\r\n0\r\n\r\n", 10),
        ("in small letters", b"a\r\n0123456789\r\n0\r\n\r\n", 10),
        ("zeros before the size", b"00005\r\nhello\r\n000\r\n\r\n", 5),
        ("an extension", b"5;name=value\r\nhello\r\n0\r\n\r\n", 5),
        ("a quoted extension", b'5;name="va;lue"\r\nhello\r\n0;x\r\n\r\n', 5),
        ("a trailer", b"5\r\nhello\r\n0\r\nX-Sum: 1\r\nY: 2\r\n\r\n", 5),
        ("a blank behind the size", b"5 \r\nhello\r\n0\r\n\r\n", 5),
        ("line breaks in the data", b"6\r\n\r\n0\r\n\r\r\n0\r\n\r\n", 6),
        ("20,000 of one byte", b"1\r\nx\r\n" * 20_000 + b"0\r\n\r\n", 20_000),
        ("one of 300,000 bytes", b"493e0\r\n" + b"x" * 300_000 + b"\r\n0\r\n\r\n", 300_000),
        ("junk behind the last", b"2\r\nok\r\n0\r\n\r\njunk", 2),
    ]:
        yield complete(f"chunks: {name}", CHUNKED + written, 200, size)
    for name, written in [
        ("no number", b"zz\r\nhello\r\n0\r\n\r\n"),
        ("a negative size", b"-5\r\nhello\r\n0\r\n\r\n"),
        ("a size with 0x", b"0x5\r\nhello\r\n0\r\n\r\n"),
        ("an empty size", b"\r\nhello\r\n0\r\n\r\n"),
        ("a size beyond 64 bits", b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
        ("more data than the size", b"3\r\nhello\r\n0\r\n\r\n"),
        ("a blank before the size", b" 5\r\nhello\r\n0\r\n\r\n"),
        ("no line break behind the data", b"5\r\nhello0\r\n\r\n"),
        ("only LF", b"5\nhello\n0\n\n"),
        ("plain text instead", b"hello, world"),
    ]:
        why = "LF alone may end a line of the head, not of a chunk (RFC 9112, 7.1); curl takes it"
        sent = once(CHUNKED + written, "close")
        yield fails(f"chunks: {name}", sent, "protocol", 200, differs=why if name == "only LF" else "")
    for name, written in [
        ("cut in a size", b"5\r\nhello\r\n1"),
        ("cut in the data", b"5\r\nhel"),
        ("cut behind the data", b"5\r\nhello"),
        ("the last one is missing", b"5\r\nhello\r\n"),
        ("the last line is missing", b"5\r\nhello\r\n0\r\n"),
        ("a size near 64 bits", b"7fffffffffffffff\r\nhello"),
        ("nothing of the body", b""),
    ]:
        yield fails(f"chunks: {name}, and closed", once(CHUNKED + written, "close"), "closed", 200)
    for name, written in [("the last one is missing", b"5\r\nhello\r\n"), ("the last line is missing", b"0\r\n")]:
        yield fails(f"chunks: {name}, and it waits", once(CHUNKED + written), "read_timeout", 200, timeout_ms=SHORT_MS)
    bytes_of_it = [bytes([byte]) for byte in b"5\r\nhello\r\n0\r\n\r\n"]
    yield complete("chunks: byte by byte", pieces(CHUNKED, *bytes_of_it, pause_s=0.002), 200, 5)
    yield fails("chunks: a bad one later", pieces(CHUNKED + b"2\r\nok\r\n", b"zz\r\n", then="close"), "protocol", 200)
    coded = b"5\r\nhello\r\n0\r\n\r\n"
    for name, lines, size in [
        ("in another case", ("Transfer-Encoding: Chunked",), 5),
        ("with a blank behind", ("Transfer-Encoding: chunked ",), 5),
        ("over gzip", ("Transfer-Encoding: gzip, chunked",), 5),
        ("twice", ("Transfer-Encoding: chunked, chunked",), 5),
        ("in two lines", ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"), 5),
        ("in HTTP/1.0", ("Transfer-Encoding: chunked",), 5),
    ]:
        status = "HTTP/1.0 200 OK" if "1.0" in name else "HTTP/1.1 200 OK"
        why = UNDECODED if "gzip" in name else ""
        yield complete(f"chunked {name}", once(head(*lines, status=status) + coded, "close"), 200, size, differs=why)
    yield fails(
        "chunked with a length",
        once(head("Content-Length: 3", "Transfer-Encoding: chunked") + coded, "close"),
        "protocol",
        differs="two answers can be read from it; it ought to be an error (RFC 9112, 6.3); curl takes the chunks",
    )
    for name, lines in [
        ("a coding we don't know", ("Transfer-Encoding: xchunked",)),
        ("identity", ("Transfer-Encoding: identity",)),
        ("gzip only", ("Transfer-Encoding: gzip",)),
        ("chunked, then gzip", ("Transfer-Encoding: chunked, gzip",)),
    ]:
        why = "" if name == "identity" else UNDECODED
        sent = once(head(*lines) + coded, "close")
        yield complete(f"transfer coding: {name}", sent, 200, len(coded), differs=why)


# ---- bodies that end with the connection ----------------------------------------------------------------------------


def until_close() -> Iterator[Case]:
    for version in ("1.0", "1.1"):
        top = head(status=f"HTTP/{version} 200 OK")
        yield complete(f"to the end, HTTP/{version}", once(top + b"all of it", "close"), 200, 9)
        yield complete(f"to the end, HTTP/{version}: nothing", once(top, "close"), 200, 0)
        yield complete(f"to the end, HTTP/{version}: in pieces", pieces(top, b"a", b"b", then="close"), 200, 2)
        yield fails(f"to the end, HTTP/{version}: a reset", once(top + b"some", "reset"), "reset", 200)
        yield fails(
            f"to the end, HTTP/{version}: no end", once(top + b"some"), "read_timeout", 200, timeout_ms=SHORT_MS
        )
    kept = head("Connection: keep-alive")
    yield complete("to the end, though keep-alive is said", once(kept + b"body", "close"), 200, 4)
    yield fails("no length, and kept alive", once(kept), "read_timeout", 200, timeout_ms=SHORT_MS)


def without_body() -> Iterator[Case]:
    for name, sent in [
        ("a length", head("Content-Length: 1000")),
        ("no length", head()),
        ("chunked", CHUNKED),
        ("a body all the same", with_body(b"a body")),
        ("a chunked body all the same", CHUNKED + b"2\r\nok\r\n0\r\n\r\n"),
    ]:
        yield complete(f"HEAD: {name}", sent, 200, 0, method="HEAD")
    nine = head("Content-Length: nine")
    yield fails("HEAD: a length that is none", nine, "protocol", method="HEAD", differs=LENGTH_IS_DIGITS)
    yield complete("HEAD: a 404", head("Content-Length: 9", status="HTTP/1.1 404 N"), 404, 0, method="HEAD")
    for status in (204, 304):
        line = f"HTTP/1.1 {status} N"
        yield complete(f"{status} with a length", head("Content-Length: 9", status=line), status, 0)
        yield complete(f"{status}, chunked", head("Transfer-Encoding: chunked", status=line), status, 0)
        yield complete(f"{status} with a body all the same", with_body(b"body", status=line), status, 0)
    yield complete("205 with a body all the same", with_body(b"body", status="HTTP/1.1 205 R"), 205, 4)


def informational() -> Iterator[Case]:
    for status in (100, 102, 103, 199):
        first = head("Link: </style.css>", status=f"HTTP/1.1 {status} X")
        yield complete(f"informational: {status}, then the answer", first + OK, 200, 2)
    once_more = head(status="HTTP/1.1 100 Continue")
    yield complete("informational: 20 of them", once_more * 20 + OK, 200, 2)
    yield complete("informational: in packets of their own", pieces(once_more, once_more, OK), 200, 2)
    yield fails("informational: and closed", once(once_more, "close"), "closed", differs=NO_ANSWER_YET)
    yield fails(
        "informational: and no more", once(once_more), "read_timeout", timeout_ms=SHORT_MS, differs=NO_ANSWER_YET
    )
    yield fails("informational: without end", endless(b"", once_more), "protocol", differs=NO_ANSWER_YET)
    yield fails("informational: and reset", once(once_more, "reset"), "reset", differs=NO_ANSWER_YET)
    switched = head("Upgrade: x", "Connection: Upgrade", status="HTTP/1.1 101 S")
    yield Case(
        "informational: a 101 that nobody asked for",
        Server(once(switched, "close")),
        101,
        "status_mismatch",
        0,
        differs=SWITCHED,
    )
    yield complete(
        "informational: a 101 that was asked for",
        once(switched, "close"),
        101,
        0,
        headers=(("Upgrade", "x"), ("Connection", "Upgrade")),
        differs=SWITCHED,
    )


# ---- encodings ------------------------------------------------------------------------------------------------------


def encodings() -> Iterator[Case]:
    packed = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xcb\xcf\x06\x00\x47\xdd\xdc\x79\x02\x00\x00\x00"
    for name, body, coding in [
        ("gzip", packed, "gzip"),
        ("gzip, broken", packed[:12] + b"\xff\xff", "gzip"),
        ("gzip that is plain", b"plain", "gzip"),
        ("gzip of nothing", b"", "gzip"),
        ("deflate that is plain", b"plain", "deflate"),
        ("br that is plain", b"plain", "br"),
        ("zstd", b"\x28\xb5\x2f\xfd\x20\x02\x11\x00\x00ok", "zstd"),
        ("one that nobody knows", b"plain", "rot13"),
        ("identity", b"plain", "identity"),
        ("two at once", packed, "gzip, gzip"),
        ("an empty word", b"plain", ""),
    ]:
        yield complete(f"encoding: {name}", with_body(body, f"Content-Encoding: {coding}"), 200, len(body))
    asked = (("Accept-Encoding", "gzip"),)
    yield complete("encoding: gzip asked for", with_body(packed, "Content-Encoding: gzip"), 200, 22, headers=asked)
    chunk = b"%x\r\n" % len(packed) + packed + b"\r\n0\r\n\r\n"
    both = head("Content-Encoding: gzip", "Transfer-Encoding: chunked") + chunk
    yield complete("encoding: gzip in chunks", both, 200, 22)
    yield complete(
        "text that is no UTF-8", with_body(b"\xff\xfe\x00", "Content-Type: text/html; charset=utf-8"), 200, 3
    )


# ---- the end of a connection, at every stage ------------------------------------------------------------------------


def endings() -> Iterator[Case]:
    stages = [
        ("before anything", b"", None),
        ("in the status line", b"HTTP/1.1 20", None),
        ("behind the status line", b"HTTP/1.1 200 OK\r\n", None),
        ("in a header", b"HTTP/1.1 200 OK\r\nContent-Le", None),
        ("behind a header", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n", None),
        ("behind the head", head("Content-Length: 5"), 200),
        ("in the body", head("Content-Length: 5") + b"abc", 200),
        ("in a chunk", CHUNKED + b"5\r\nabc", 200),
        ("between chunks", CHUNKED + b"3\r\nabc\r\n", 200),
        ("before the last line", CHUNKED + b"3\r\nabc\r\n0\r\n", 200),
    ]
    for name, sent, status in stages:
        more = {"requests": 1, "differs": WHOLE_HEAD if "header" in name or name == "behind the status line" else ""}
        yield fails(f"closed {name}", once(sent, "close"), "closed", status, **more)
        yield fails(f"reset {name}", once(sent, "reset"), "reset", status, **more)
        yield fails(f"silence {name}", once(sent), "read_timeout", status, timeout_ms=SHORT_MS, **more)
    yield complete("closed behind the answer", once(OK, "close"), 200, 2)
    yield complete("reset behind the answer", once(OK, "reset"), 200, 2)
    yield fails("closed at once", unasked(b"", "finish"), "closed")
    yield fails("reset unasked", unasked(b"", "reset"), "reset")
    yield fails("silence from the beginning", unasked(b""), "read_timeout", timeout_ms=SHORT_MS)


def slow_and_endless() -> Iterator[Case]:
    large = head("Content-Length: 1000000")
    for name, first, piece, status in [
        ("a byte of the head at a time", b"HTTP/1.1 200 OK\r\nX: ", b"x", None),
        ("a byte of the body at a time", large, b"x", 200),
        ("a chunk at a time", CHUNKED, b"1\r\nx\r\n", 200),
        ("a byte at a time, to the end", head(), b"x", 200),
        ("informational answers", b"", head(status="HTTP/1.1 102 P"), None),
    ]:
        script = endless(first, piece, pause_s=0.04)
        why = "" if status else NO_ANSWER_YET if "informational" in name else WHOLE_HEAD
        yield fails(f"a drip: {name}", script, "read_timeout", status, timeout_ms=SHORT_MS, differs=why)
    for name, first, piece in [
        ("chunks", CHUNKED, b"1000\r\n" + b"x" * 4_096 + b"\r\n"),
        ("to the end", head(), b"x" * 4_096),
        ("a length of 2^62", head("Content-Length: 4611686018427387904"), b"x" * 4_096),
    ]:
        script = endless(first, piece, pause_s=0.001)
        limits = {"body_limit_bytes": 20_000, "timeout_ms": 1_000}
        yield complete(f"endless: {name}", script, 200, 20_000, differs=OWN_LIMIT, **limits)
    limited = with_body(b"x" * 30_000)
    yield complete("larger than is read", limited, 200, 20_000, differs=OWN_LIMIT, body_limit_bytes=20_000)
    yield complete("as large as is read", with_body(b"x" * 20_000), 200, 20_000, body_limit_bytes=20_000)
    yield complete("slow, and in time", pieces(OK[:9], OK[9:30], OK[30:], pause_s=0.1), 200, 2)
    early = before_the_body(with_body(b"too large", "Connection: close", status="HTTP/1.1 413 T"))
    yield complete("an answer before the request is through", early, 413, 9, method="POST", body="x" * 300_000)
    yield fails(
        "a request that is not read",
        deaf(),
        "total_timeout",
        method="POST",
        body="x" * 20_000_000,
        timeout_ms=2 * SHORT_MS,
        says="sending the request",
    )


# ---- redirects ------------------------------------------------------------------------------------------------------


def to(location: str, status: int = 302, body: bytes = b"") -> bytes:
    return with_body(body, f"Location: {location}", status=f"HTTP/1.1 {status} X")


THERE = with_body(b"there")


def redirects() -> Iterator[Case]:
    def routed(name: str, table: dict[str, bytes], **more: object) -> Case:
        more.setdefault("url", "http://127.0.0.1:{port}/a")
        return complete(f"redirect: {name}", routes(table), 200, 5, **more)

    for status in (301, 302, 303, 307, 308):
        yield routed(f"a {status}", {"/a": to("/b", status), "/b": THERE}, requests=2)
    base = "http://127.0.0.1:{port}"
    for name, location, target in [
        ("to a whole URL", "http://127.0.0.1:{port}/b", "/b"),
        ("to a URL without scheme", "//127.0.0.1:{port}/b", "/b"),
        ("to a path", "/b", "/b"),
        ("to a relative path", "b", "/d/b"),
        ("to a relative path upwards", "../b", "/b"),
        ("to a relative path, too far up", "../../../b", "/b"),
        ("to a path with dots in it", "/x/./y/../b", "/x/b"),
        ("to a query", "?q=1", "/d/a?q=1"),
        ("to a path with a query", "/b?q=%2F&r=a+b", "/b?q=%2F&r=a+b"),
        ("with a fragment", "/b#part", "/b"),
        ("with blanks around", "  /b  ", "/b"),
        ("with a blank in it", "/b c", "/b%20c"),
        ("with an escaped blank", "/b%20c", "/b%20c"),
        ("with brackets", "/b[1]|{2}", "/b[1]|{2}"),
        ("to a scheme in capitals", "HTTP://127.0.0.1:{port}/b", "/b"),
        ("to a URL without path", "http://127.0.0.1:{port}", "/"),
        ("to a URL with a query and no path", "http://127.0.0.1:{port}?q", "/?q"),
        ("with a user in it", "http://u:p@127.0.0.1:{port}/b", "/b"),
    ]:
        table = {"/d/a": to(location), target: THERE}
        yield routed(name, table, url=base + "/d/a", requests=2)
    yield routed("outside ASCII", {"/a": to("/größe"), "/gr%F6%DFe": THERE, "/gr%f6%dfe": THERE})
    chain = {f"/{number}": to(f"/{number + 1}") for number in range(10)}
    yield routed("ten of them", {**chain, "/10": THERE}, url=base + "/0", requests=11)
    eleven = {**chain, "/10": to("/11"), "/11": THERE}
    yield fails("redirect: eleven of them", routes(eleven), "too_many_redirects", 302, url=base + "/0", requests=11)
    yield fails("redirect: to itself", answers(to("/")), "too_many_redirects", 302, requests=11)
    there_and_back = {"/a": to("/b"), "/b": to("/a")}
    yield fails("redirect: there and back", routes(there_and_back), "too_many_redirects", 302, url=base + "/a")
    for status in (301, 302, 303, 307, 308):
        kept = status in {307, 308}

        def as_it_should(request: Request, *, kept: bool = kept) -> bool:
            return (request.method, request.body) == (("POST", b"data") if kept else ("GET", b""))

        other = Server(wants(as_it_should))
        moved = answers(to("http://127.0.0.1:{other}/", status))
        yield complete(f"redirect: POST and a {status}", moved, 200, 2, method="POST", body="data", other=other)
    yield complete(
        "redirect: HEAD and a 303",
        routes({"/": head("Location: /b", "Content-Length: 9", status="HTTP/1.1 303 S"), "/b": head("X: y")}),
        200,
        0,
        method="HEAD",
    )
    for status in (300, 304, 305, 306):
        yield complete(f"redirect: a {status} is none", to("/b", status), status, 0, differs=NOT_BY_ITSELF)
    yield complete("redirect: without Location", with_body(b"", status="HTTP/1.1 302 F"), 302, 0)
    yield complete("redirect: with an empty Location", to(""), 302, 0)
    yield complete("redirect: a 201 with Location is none", to("/b", 201), 201, 0)
    yield complete("redirect: not followed", to("/b"), 302, 0, follow=False)
    yield complete("redirect: its own status is expected", to("/b"), 302, 0)
    yield routed("with a body", {"/a": to("/b", body=b"moved"), "/b": THERE})
    yield routed(
        "two Locations",
        {
            "/a": head("Location: /b", "Location: /c", "Content-Length: 0", status="HTTP/1.1 302 F"),
            "/b": THERE,
            "/c": THERE,
        },
    )
    for name, location in [
        ("ftp", "ftp://127.0.0.1/"),
        ("javascript", "javascript:0"),
        ("mailto", "mailto:a@b.test"),
        ("file", "file:///etc/hostname"),
    ]:
        yield fails(f"redirect: to {name}", answers(to(location)), "blocked", 302, says="redirects to where")
    for name, location in [
        ("a port that is none", "http://127.0.0.1:99999/"),
        ("a port that is a word", "http://127.0.0.1:http/"),
        ("no host", "http:///b"),
        ("brackets that are no address", "http://[::g]/"),
    ]:
        why = LOCATION_HOST if name == "no host" else ""
        yield fails(
            f"redirect: to {name}", answers(to(location)), "protocol", 302, says="redirects to where", differs=why
        )
    yield fails("redirect: to a control character", answers(to("/b\x01c")), "protocol", 302)
    yield fails(
        "redirect: to a name that is none",
        answers(to("http://nowhere.test/")),
        "dns",
        names={"nowhere.test": "EAI_NONAME"},
        says="nowhere.test",
        differs=LAST_HOP,
    )
    yield fails("redirect: to a port where nobody listens", answers(to("http://127.0.0.1:1/")), "connect_refused",
                differs=LAST_HOP)  # fmt: skip
    away = answers(to("https://good.test:{other}/"))
    yield complete("redirect: to TLS", away, 200, 5, other=Server(answers(THERE), "good"))
    bad = Server(answers(THERE), "another name")
    yield fails("redirect: to a bad certificate", away, "tls_verify", other=bad, differs=LAST_HOP)
    back = Server(answers(to("http://127.0.0.1:{other}/")), "good")
    yield Case(
        "redirect: from TLS to plain", back, size=5, other=Server(answers(THERE)), url="https://127.0.0.1:{port}/"
    )
    half = turns(
        (head("Location: /b", "Content-Length: 9", status="HTTP/1.1 302 F") + b"half", "wait"), (THERE, "wait")
    )
    yield complete(
        "redirect: with half a body, and it waits",
        half,
        200,
        5,
        differs="where it leads is known with the head; the body of a redirect is not waited for, and curl waits",
        timeout_ms=1_000,
    )
    slow = pieces(b"HTTP/1.1 302 F\r\n", b"Location: /\r\nContent-Length: 0\r\n\r\n", pause_s=0.2, then="close")
    yield fails("redirect: each takes its time", slow, "total_timeout", timeout_ms=SHORT_MS, says="redirect(s)",
                differs=LAST_HOP)  # fmt: skip
    yield fails(
        "redirect: to silence",
        answers(to("http://127.0.0.1:{other}/")),
        "total_timeout",
        timeout_ms=SHORT_MS,
        other=Server(unasked(b"")),
        differs=LAST_HOP,
    )
    yield fails(
        "redirect: to a close",
        answers(to("http://127.0.0.1:{other}/")),
        "closed",
        other=Server(once(b"", "close")),
        differs=LAST_HOP,
    )
    secret = (("Authorization", "Bearer s"), ("Cookie", "s=1"))
    keeps_quiet = Server(wants(lambda request: request.header("Authorization") is None))
    yield complete(
        "redirect: secrets stay at home", answers(to("http://good.test:{other}/")), 200, 2, other=keeps_quiet,
        headers=secret,
    )  # fmt: skip


# ---- TLS ------------------------------------------------------------------------------------------------------------


def tls() -> Iterator[Case]:
    def secure(name: str, kind: str, host: str = "127.0.0.1", **more: object) -> Case:
        more.setdefault("names", {host: ("127.0.0.1",)} if host[0].isalpha() else {})
        sent = more.pop("sent", answers(OK))
        return Case(f"TLS: {name}", Server(sent, kind), url=f"https://{host}:{{port}}/", **more)

    for name, kind, host in [
        ("a certificate for the address", "good", "127.0.0.1"),
        ("a certificate for the name", "good", "good.test"),
        ("a name in capitals", "good", "GOOD.test"),
        ("a name with a dot at its end", "good", "good.test."),
        ("a wildcard", "wildcard", "a.wild.test"),
        ("one of 94 names", "many names", "n89.test"),
        ("an intermediate authority", "an intermediate", "good.test"),
        ("an RSA key", "an RSA key", "good.test"),
        ("TLS 1.2", "good, TLS 1.2", "good.test"),
        ("TLS 1.3", "good, TLS 1.3", "good.test"),
    ]:
        names = {host.lower(): ("127.0.0.1",)} if host[0].isalpha() else {}
        yield secure(name, kind, host, size=2, names=names)
    for name, kind, host, code, says in [
        ("a certificate for another name", "another name", "good.test", "tls_verify", "other names"),
        ("a certificate without the address", "another name", "127.0.0.1", "tls_verify", "other addresses"),
        ("a wildcard for one label more", "wildcard", "a.b.wild.test", "tls_verify", "other names"),
        ("a wildcard for none", "wildcard", "wild.test", "tls_verify", "other names"),
        ("an unknown authority", "an unknown authority", "good.test", "tls_verify", "issuer is not known"),
        ("a self-signed certificate", "self-signed", "good.test", "tls_verify", "self-signed"),
        ("an intermediate that is not sent", "an intermediate that is not sent", "good.test", "tls_verify", "issuer"),
        ("a certificate for clients only", "for clients only", "good.test", "tls_verify", "not for servers"),
        ("a weak key", "a weak key, self-signed", "good.test", "tls_verify", "certificate of"),
        ("not valid yet", "valid from tomorrow", "good.test", "tls_verify", "not valid yet"),
        ("expired", "expired yesterday", "good.test", "tls_expired", "has expired"),
    ]:
        yield secure(name, kind, host, status_code=None, error_code=code, says=says, requests=0)
    yield secure(
        "expired, and for another name",
        "expired, and for another name",
        "good.test",
        status_code=None,
        error_code="tls_verify",
        says="other names",
        requests=0,
        differs="both are true, and a new certificate for that name would not mend it; curl looks at names last",
    )
    for name, kind in [("TLS 1.1 at most", "good, TLS 1.1"), ("no cipher in common", "good, no common cipher")]:
        yield secure(name, kind, "good.test", status_code=None, error_code="tls_other")
    wanted = "good, a client's certificate wanted"
    yield secure("a client's certificate wanted", wanted, "good.test", status_code=None, error_code="closed")
    yield secure(
        "a client's certificate wanted, TLS 1.2", wanted + ", TLS 1.2", "good.test", status_code=None,
        error_code="tls_other",
    )  # fmt: skip
    for name, data, then, code in [
        ("plain HTTP on its port", with_body(b"", status="HTTP/1.1 400 Bad Request"), "wait", "tls_other"),
        ("SSH on its port", b"SSH-2.0-OpenSSH_9.2\r\n", "wait", "tls_other"),
        ("an alert", b"\x15\x03\x03\x00\x02\x02\x28", "close", "tls_other"),
        ("closed in the handshake", b"", "close", "tls_other"),
        ("half a greeting, and closed", b"\x16\x03\x03\x00\x7a\x02\x00", "close", "tls_other"),
        ("reset in the handshake", b"", "reset", "reset"),
        ("silence in the handshake", b"", "wait", "connect_timeout"),
        ("half a greeting, and silence", b"\x16\x03\x03\x00\x7a\x02\x00", "wait", "connect_timeout"),
    ]:
        time_out = SHORT_MS if code == "connect_timeout" else AMPLE_MS
        yield fails(
            f"TLS: {name}", on_first_bytes(data, then), code, url="https://127.0.0.1:{port}/", timeout_ms=time_out
        )
    yield Case("TLS: plain HTTP to its port", Server(answers(OK), "good"), None, "closed")
    for name, sent, size, code in [
        ("closed behind the answer", once(OK, "close"), 2, None),
        ("closed in the body", once(head("Content-Length: 5") + b"abc", "close"), None, "closed"),
        ("closed before the answer", once(b"", "close"), None, "closed"),
        ("to the end, with a proper end", once(head() + b"all", "close"), 3, None),
        ("to the end, reset", once(head() + b"all", "reset"), None, "reset"),
        ("to the end, which comes below TLS", once(head() + b"all", "cut"), 3, None),
        ("cut off below TLS behind the answer", once(OK, "cut"), 2, None),
        ("cut off below TLS in the body", once(head("Content-Length: 5") + b"abc", "cut"), None, "closed"),
        ("cut off below TLS before the answer", once(b"", "cut"), None, "closed"),
        ("reset in the body", once(head("Content-Length: 5") + b"abc", "reset"), None, "reset"),
        ("chunks", answers(CHUNKED + b"2\r\nok\r\n0\r\n\r\n"), 2, None),
        ("a large body", answers(with_body(b"x" * 400_000)), 400_000, None),
        ("what is not HTTP", once(b"SSH-2.0-OpenSSH\r\n"), None, "protocol"),
    ]:
        status = None if (code is not None and "before" in name) or code == "protocol" else 200
        yield secure(name, "good", status_code=status, error_code=code, sent=sent, size=size)
    yield secure(
        "silence behind the handshake", "good", sent=unasked(b""), status_code=None, error_code="read_timeout",
        timeout_ms=SHORT_MS,
    )  # fmt: skip


# ---- addresses and names --------------------------------------------------------------------------------------------


def addresses() -> Iterator[Case]:
    yield complete("an address of IPv4", OK, 200, 2)
    on_six = Server(answers(OK), host="::1")
    yield Case("an address of IPv6", on_six, size=2, url="http://[::1]:{port}/", names={})
    yield Case("an address of IPv6, written out", on_six, size=2, url="http://[0:0:0:0:0:0:0:1]:{port}/", names={})
    yield Case("IPv4 in IPv6", Server(answers(OK)), size=2, url="http://[::ffff:127.0.0.1]:{port}/", names={})
    yield Case("the address of no host", Server(answers(OK)), size=2, url="http://0.0.0.0:{port}/", names={})
    named = "http://dual.test:{port}/"
    for name, server, found in [
        ("only IPv4", Server(answers(OK)), ("127.0.0.1",)),
        ("only IPv6", on_six, ("::1",)),
        ("both, and only IPv4 listens", Server(answers(OK)), ("::1", "127.0.0.1")),
        ("both, and only IPv6 listens", on_six, ("::1", "127.0.0.1")),
        ("both, IPv4 first, and only IPv6 listens", on_six, ("127.0.0.1", "::1")),
        ("three addresses, and the last one listens", Server(answers(OK)), ("127.0.0.2", "127.0.0.3", "127.0.0.1")),
    ]:
        yield Case(f"a name with {name}", server, size=2, url=named, names={"dual.test": found})
    yield Case(
        "a name with two addresses, the first mute",
        Server(answers(OK)),
        size=2,
        url=named,
        names={"dual.test": ("127.0.0.2", "127.0.0.1")},
        place="mute beside",
    )
    yield Case(
        "a name with both, and nobody listens", None, None, "connect_refused", url=named, place="refusing",
        names={"dual.test": ("::1", "127.0.0.1")},
    )  # fmt: skip
    yield Case(
        "a name with both, one refuses and there is no way to the other", None, None, "connect_refused", url=named,
        place="refusing", names={"dual.test": ("255.255.255.255", "127.0.0.1")},
    )  # fmt: skip
    yield Case("nobody listens", None, None, "connect_refused", place="refusing", says="refused")
    yield Case(
        "nobody listens for TLS", None, None, "connect_refused", place="refusing", url="https://127.0.0.1:{port}/"
    )
    yield Case("no way there", None, None, "connect_unreachable", url="http://255.255.255.255/", names={})
    yield Case("packets are dropped", None, None, "connect_timeout", place="mute", timeout_ms=SHORT_MS)
    yield Case(
        "packets to a name are dropped", None, None, "connect_timeout", place="mute", timeout_ms=SHORT_MS,
        url="http://good.test:{port}/",
    )  # fmt: skip
    yield Case(
        "packets are dropped, TLS", None, None, "connect_timeout", place="mute", timeout_ms=SHORT_MS,
        url="https://127.0.0.1:{port}/",
    )  # fmt: skip


def names() -> Iterator[Case]:
    for failure, words in [
        ("EAI_NONAME", "no such name"),
        ("EAI_AGAIN", "no answer for the time being"),
        ("EAI_FAIL", "the name server failed"),
        ("EAI_NODATA", "no address"),
    ]:
        yield Case(
            f"a lookup: {failure}", None, None, "dns", url="http://some.test/", names={"some.test": failure}, says=words
        )
        yield Case(f"a lookup for TLS: {failure}", None, None, "dns", url="https://some.test/",
                   names={"some.test": failure})  # fmt: skip
    yield Case(
        "a lookup: no answer in time", None, None, "dns", url="http://some.test/", names={"some.test": "hang"},
        timeout_ms=SHORT_MS, says="no answer within",
    )  # fmt: skip
    server = Server(answers(OK))
    for name, host in [
        ("in capitals", "GOOD.TEST"),
        ("with a dot at its end", "good.test."),
        ("with an underscore", "my_host.test"),
        ("outside ASCII", "bücher.test"),
        ("in Punycode", "xn--bcher-kva.test"),
        ("of 250 characters", ".".join(["a" * 49] * 5)),
        ("of digits", "1.2.3.test"),
    ]:
        asked = host.lower().encode("idna").decode() if not host.isascii() else host.lower()
        known = {asked: ("127.0.0.1",)}
        yield Case(f"a name {name}", server, size=2, url=f"http://{host}:{{port}}/", names=known)


# ---- requests -------------------------------------------------------------------------------------------------------


def requests() -> Iterator[Case]:
    def asks(name: str, test: Callable[[Request], bool], **more: object) -> Case:
        size = 0 if more.get("method") == "HEAD" else 2
        return complete(f"request: {name}", wants(test), 200, size, requests=1, **more)

    for method in ("GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "x-Odd~1"):
        yield asks(f"method {method}", lambda request, method=method: request.method == method, method=method)
    for method in ("POST", "PUT", "PATCH", "DELETE", "GET"):
        with_data = {"method": method, "body": "größe"}
        yield asks(
            f"{method} with a body",
            lambda request, method=method: (request.method, request.body) == (method, "größe".encode()),
            **with_data,
        )
    for name, target in [
        ("a query", "/a?b=c&d=e%20f+g"),
        ("escapes", "/a%2Fb%2f%7E"),
        ("dots", "/a/../b/./c"),
        ("slashes", "//a///b"),
        ("brackets", "/?x=[1]|{2}"),
        ("an empty query", "/?"),
        ("4,000 characters", "/" + "x" * 4_000),
    ]:
        yield asks(
            f"{name} in the target",
            lambda request, target=target: request.target == target,
            url=f"http://127.0.0.1:{{port}}{target}",
        )
    yield asks("no path", lambda request: request.target == "/", url="http://127.0.0.1:{port}")
    yield asks("a query and no path", lambda request: request.target == "/?q", url="http://127.0.0.1:{port}?q")
    yield asks("a fragment", lambda request: request.target == "/a", url="http://127.0.0.1:{port}/a#b")
    yield asks(
        "outside ASCII in the target",
        lambda request: request.target == "/gr%C3%B6%C3%9Fe",
        url="http://127.0.0.1:{port}/größe",
        differs="what is outside ASCII goes out percent-encoded (RFC 3986, 2); curl sends the bytes",
    )
    yield asks(
        "user and password",
        lambda request: request.header("Authorization") == "Basic dTpw",
        url="http://u:p@127.0.0.1:{port}/",
    )
    yield asks(
        "headers", lambda request: request.header("X-One") == "1; two", headers=(("X-One", "1; two"), ("Accept", "a/b"))
    )
    yield asks("another Host", lambda request: request.header("Host") == "v.test", headers=(("Host", "v.test"),))
    for name, url in [
        ("nothing", ""),
        ("a word", "nonsense"),
        ("ftp", "ftp://127.0.0.1/"),
        ("no host", "http:///"),
        ("port 0", "http://127.0.0.1:0/"),
        ("port 65536", "http://127.0.0.1:65536/"),
        ("a port that is a word", "http://127.0.0.1:http/"),
        ("a blank in the host", "http://a b/"),
        ("brackets left open", "http://[::1/"),
        ("an address of IPv6 that is none", "http://[::g]/"),
        ("a blank in the path", "http://127.0.0.1:9/a b"),
    ]:
        why = NO_GUESS if name == "a word" else NOT_SENDABLE if name in {"ftp", "port 0"} else ""
        yield fails(f"no request: {name} for a URL", None, "invalid_request", url=url, differs=why)
    for name, more in [
        ("a blank in the method", {"method": "G T"}),
        ("CONNECT", {"method": "CONNECT"}),
        ("a line break in a header", {"headers": (("X", "a\r\nY: b"),)}),
    ]:
        yield fails(f"no request: {name}", None, "invalid_request", place="refusing", differs=NOT_SENDABLE, **more)


# ---- connections that are used again --------------------------------------------------------------------------------


def kept_connections() -> Iterator[Case]:
    yield complete("again: on the same connection", OK, 200, 2, polls=3, requests=3)
    yield complete("again: closed meanwhile", once(OK, "close"), 200, 2, polls=2, requests=2)
    yield complete("again: reset meanwhile", once(OK, "reset"), 200, 2, polls=2, pause_s=0.06, requests=2)
    no = (b"", "close")
    yield complete("again: closed at the second request", turns((OK, "wait"), no, (OK, "wait"), everywhere=True),
                   200, 2, polls=2, requests=3)  # fmt: skip
    yield complete("again: reset at the second request", turns((OK, "wait"), (b"", "reset"), (OK, "wait"),
                   everywhere=True), 200, 2, polls=2, requests=3)  # fmt: skip
    yield fails("again: and then never again", turns((OK, "wait"), no, no, everywhere=True), "closed", polls=2,
                requests=3)  # fmt: skip
    half = (b"HTTP/1.1 20", "close")
    yield fails("again: closed in the second answer", turns((OK, "wait"), half, everywhere=True), "closed", polls=2,
                requests=2)  # fmt: skip
    junk = turns((OK + b"junk", "wait"))
    yield complete("again: junk behind the first answer", junk, 200, 2, polls=2, requests=2)


FAMILIES = (
    plain_statuses,
    status_lines,
    other_protocols,
    heads,
    lengths,
    chunks,
    until_close,
    without_body,
    informational,
    encodings,
    endings,
    slow_and_endless,
    redirects,
    tls,
    addresses,
    names,
    requests,
    kept_connections,
)

CASES: tuple[Case, ...] = tuple(case for family in FAMILIES for case in family())
