"""What of a project is shown to people who did not ask for its secrets: lists, logs, messages.  Pure.

Hidden are the password in a URL (all of what precedes the @ when it has no colon: that is a token), the values of
headers whose names say that they carry a secret, the body, and what the options authorize with.  Names, hosts, paths
and queries are shown.  What is stored or sent never passes through here.
"""

import re
from collections.abc import Mapping
from typing import Any

MASK = "***"

_SECRET_NAME = re.compile(r"auth|cookie|token|secret|passw|api-?key|credential|signature|session", re.IGNORECASE)
# Also of what is no URL: the text may be a mistaken one, with the password in it.
_USERINFO = re.compile(r"(^\s*(?:[A-Za-z][A-Za-z0-9+.-]*:/*)?|//)([^/?#]*)@")


def masked_url(url: str) -> str:
    return _USERINFO.sub(_masked_userinfo, url, count=1)


def is_secret_header(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None


def masked_project(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of ``projects`` with its headers decoded."""
    shown = dict(row) | {"url": masked_url(row["url"])}
    for name in ("body", "bearer_token"):
        if row[name] is not None:
            shown[name] = MASK
    if row["basic_auth"] is not None:
        shown["basic_auth"] = f"{row['basic_auth'].partition(':')[0]}:{MASK}"
    if row["proxy"] is not None:
        shown["proxy"] = masked_url(row["proxy"])
    if row["headers"]:
        shown["headers"] = {name: MASK if is_secret_header(name) else value for name, value in row["headers"].items()}
    return shown


def kept_secrets(before: Mapping[str, Any], patch: Mapping[str, Any]) -> list[str]:
    """Fields with a secret that the patch of a project leaves as it is: whoever wrote the patch need not know it."""
    kept = [name for name in ("bearer_token", "basic_auth", "body") if before[name] is not None and name not in patch]
    given = {str(name).lower() for name in (patch.get("headers") or {})}
    headers = () if "headers" in patch and patch["headers"] is None else before["headers"] or ()
    if any(is_secret_header(name) and name.lower() not in given for name in headers):
        kept.append("headers")
    if "url" not in patch and masked_url(before["url"]) != before["url"]:
        kept.append("url")
    return kept


def has_mask(name: str, value: object) -> bool:
    """Whether a field of a project, as someone writes it, has the mask in the place of a secret."""
    match name, value:
        case (("body" | "bearer_token"), str()):
            return value == MASK
        case "basic_auth", str():
            return value.endswith(f":{MASK}")
        case (("url" | "proxy"), str()):
            found = _USERINFO.search(value)
            return found is not None and (found[2] == MASK or found[2].endswith(f":{MASK}"))
        case "headers", Mapping():
            return any(is_secret_header(str(header)) and given == MASK for header, given in value.items())
        case _:
            return False


def kind_of(value: object) -> str:
    """What a value is in JSON's words, where it is not shown itself: it may be a secret, written wrongly."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case Mapping():
            return "a map"
        case list() | tuple():
            return "a list"
        case _:
            return f"of type {type(value).__name__}"


def _masked_userinfo(found: re.Match[str]) -> str:
    user, colon, _ = found[2].partition(":")
    return f"{found[1]}{user}:{MASK}@" if colon else f"{found[1]}{MASK}@"
