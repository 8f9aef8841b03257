"""The OpenAPI document, and a page to read and try it: three files of the package, nothing from elsewhere."""

import importlib.resources
from functools import cache

from aiohttp import web

from coordinator.web.call import Call

OPENAPI = web.AppKey("openapi", bytes)  # the document, encoded

_CACHE = {"Cache-Control": "no-cache"}
_TYPES = {"index.html": "text/html", "docs.js": "text/javascript", "docs.css": "text/css"}


async def get_openapi(call: Call) -> web.StreamResponse:
    return web.Response(body=call.request.app[OPENAPI], content_type="application/json", headers=_CACHE)


async def get_docs(_call: Call) -> web.StreamResponse:
    return _file("index.html")


async def get_docs_script(_call: Call) -> web.StreamResponse:
    return _file("docs.js")


async def get_docs_style(_call: Call) -> web.StreamResponse:
    return _file("docs.css")


def _file(name: str) -> web.Response:
    return web.Response(text=_text(name), content_type=_TYPES[name], charset="utf-8", headers=_CACHE)


@cache
def _text(name: str) -> str:
    return importlib.resources.files("coordinator").joinpath("web", "docs", name).read_text(encoding="utf-8")
