"""The files of the page, served from the package: read once at the start, answered from memory.

``/`` is the page for whoever takes HTML.  Everything it loads is at ``/static/VERSION/NAME``, where VERSION is a digest
of all files: such an address never changes its content, so browsers keep it for a year, and a page never runs with
modules of another version.  Names are looked up in a table of what was read; no path of a request reaches the disk.

Answers carry a strict Content-Security-Policy: no script, style, font or picture but the package's own, nothing inline.
It knows nothing of projects; the page asks the API.
"""

import gzip
import hashlib
from pathlib import Path

import msgspec
from aiohttp import web

DIRECTORY = Path(__file__).parent / "page"
INDEX = "index.html"
MODULES_MARK = "<!-- modules -->"  # in the index: where the modules are named, so that they are fetched side by side
VERSION_MARK = "VERSION"
GZIP_BYTES_MIN = 512
CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",  # a project's URL opened from here is not told where it was seen
    "X-Content-Type-Options": "nosniff",
}
FOREVER = "public, max-age=31536000, immutable"
ASK_AGAIN = "no-cache"


class PageFile(msgspec.Struct, frozen=True):
    body: bytes
    packed: bytes | None  # gzip; None where it would not be shorter
    content_type: str
    etag: str


class PageFiles:
    """Reads the files; ``index`` and ``static`` are the handlers of ``/`` and ``/static/{version}/{name}``."""

    def __init__(self, directory: Path = DIRECTORY) -> None:
        contents = {
            path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.suffix in CONTENT_TYPES
        }
        digest = hashlib.sha256()
        for name, body in contents.items():
            digest.update(b"%s %d\n%s" % (name.encode(), len(body), body))
        self.version = digest.hexdigest()[:16]
        modules = [name for name in contents if name.endswith(".js")]
        contents[INDEX] = _index(contents[INDEX].decode(), self.version, modules)
        self._files = {name: _page_file(name, body) for name, body in contents.items()}

    @property
    def names(self) -> list[str]:
        return sorted(self._files)

    async def index(self, request: web.Request) -> web.Response:
        return _answer(request, self._files[INDEX], ASK_AGAIN)

    async def static(self, request: web.Request) -> web.Response:
        """Another version's address is answered too, with what there is now: a page may be older than the server."""
        file = self._files.get(request.match_info["name"])
        if file is None or request.match_info["name"] == INDEX:
            raise web.HTTPNotFound
        return _answer(request, file, FOREVER if request.match_info["version"] == self.version else ASK_AGAIN)


def wants_page(request: web.Request) -> bool:
    """Whether ``/`` is asked for by a browser, and not by a program that takes JSON or anything."""
    return "text/html" in request.headers.get("Accept", "")


def _index(text: str, version: str, modules: list[str]) -> bytes:
    links = "\n".join(f'<link rel="modulepreload" href="/static/{VERSION_MARK}/{name}">' for name in modules)
    return text.replace(MODULES_MARK, links).replace(f"/static/{VERSION_MARK}/", f"/static/{version}/").encode()


def _page_file(name: str, body: bytes) -> PageFile:
    packed = gzip.compress(body, mtime=0) if len(body) >= GZIP_BYTES_MIN else None
    return PageFile(
        body=body,
        packed=packed if packed is not None and len(packed) < len(body) else None,
        content_type=CONTENT_TYPES[Path(name).suffix],
        etag=hashlib.sha256(body).hexdigest()[:32],
    )


def _answer(request: web.Request, file: PageFile, caching: str) -> web.Response:
    headers = {
        **SECURITY_HEADERS,
        "Cache-Control": caching,
        "ETag": f'"{file.etag}"',
        "Vary": "Accept, Accept-Encoding",
    }
    if any(tag.value in {file.etag, "*"} for tag in request.if_none_match or ()):
        return web.Response(status=304, headers=headers)
    body = file.body
    if file.packed is not None and "gzip" in request.headers.get("Accept-Encoding", ""):
        body = file.packed
        headers["Content-Encoding"] = "gzip"
    return web.Response(body=body, headers={**headers, "Content-Type": file.content_type})
