"""The HTTP server's certificate: from files, and from the files again when they change.

TLS 1.2 and newer, with the library's usual ciphers.  ``context`` stays the same and hands each new connection to the
one that was made of the newest files: loading them into the same context would leave a certificate of another key type
in it.  A pair that can't be used (half of it is written yet) leaves the old one in force, and is tried again.
"""

import asyncio
import logging
import ssl
from pathlib import Path

from cluster.errors import InvalidInputError
from cluster.settings import Settings

WATCH_S = 10.0

logger = logging.getLogger("cluster.access.tls")

_Versions = tuple[tuple[int, int, int], ...]


class ServerCertificate:
    """Raises InvalidInputError when the files can't be used."""

    def __init__(self, cert: Path, key: Path) -> None:
        self._cert = cert
        self._key = key
        self._versions = self._look()
        self.context = self._newest = self._load()
        self.context.sni_callback = self._choose

    def renew(self) -> bool:
        """Use the files if they have changed; True: new ones are in force.  Raises InvalidInputError."""
        versions = self._look()
        if versions == self._versions:
            return False
        self._newest = self._load()
        self._versions = versions
        return True

    async def watch(self, every_s: float = WATCH_S) -> None:
        """For ever: renew."""
        said = ""
        while True:
            await asyncio.sleep(every_s)
            try:
                if self.renew():
                    logger.info("a new certificate is in force: %s", self._cert)
                    said = ""
            except InvalidInputError as error:
                if str(error) != said:
                    said = str(error)
                    logger.warning("the certificate is not renewed, the old one stays in force: %s", error)

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        """Called for each connection, also for one that names no server."""
        connection.context = self._newest

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self._cert, self._key, password=_refuse)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise InvalidInputError(
                    f"the key in {self._key} does not belong to the certificate in {self._cert} "
                    "(--http-key, --http-cert)"
                ) from error
            raise InvalidInputError(
                f"--http-cert {self._cert} and --http-key {self._key} are not a certificate chain and its unencrypted "
                f"private key, both in PEM ({error.reason or 'not readable'})"
            ) from error
        except OSError as error:
            raise InvalidInputError(f"cannot read --http-cert {self._cert}: {error.strerror}") from error
        return context

    def _look(self) -> _Versions:
        """By what a changed file is known; raises InvalidInputError when one can't be read."""
        found = []
        for option, path in (("--http-cert", self._cert), ("--http-key", self._key)):
            try:
                with path.open("rb"):
                    status = path.stat()
            except OSError as error:
                raise InvalidInputError(f"cannot read {option} {path}: {error.strerror}") from error
            found.append((status.st_mtime_ns, status.st_size, status.st_ino))
        return tuple(found)


def server_certificate(settings: Settings) -> ServerCertificate | None:
    """As configured; None: HTTP.  Raises InvalidInputError."""
    cert, key = settings.http_cert, settings.http_key
    if cert is not None and key is not None:
        return ServerCertificate(cert, key)
    if cert is not None or key is not None:
        given, wanting = ("--http-cert", "--http-key") if cert is not None else ("--http-key", "--http-cert")
        raise InvalidInputError(f"{given} is given without {wanting}; HTTPS needs both")
    return None


def _refuse() -> str:
    """The password of a key: there is nobody to ask."""
    return ""
