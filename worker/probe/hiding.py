"""Secrets that a target sent back, taken out of the messages of outcomes.

A message may quote an answer (an assertion that fails says what was found), and some servers show a request to whoever
made it.  Hidden is what a project sends to prove who it is: what its references stood for, the values of headers whose
names say so, ``basic_auth`` and ``bearer_token``, the password of its URL; each as it is, as JSON writes it, in base64
where it is sent like that, and cut off at the end of a quotation.  Nothing else of an answer is hidden.
"""

from collections.abc import Iterable, Iterator
from urllib.parse import unquote

import msgspec
import orjson

from cluster.masking import MASK, is_secret_header
from cluster.project import ProjectSpec
from worker.probe.connection_settings import credentials_of
from worker.probe.interface import OnOutcome, ProbeOutcome

HIDDEN_CHARS_MIN = 4  # of a secret, or of the beginning of one that is cut off
CUT_MARKS = ("...", "\N{HORIZONTAL ELLIPSIS}", "'", '"')
CUT_CHARS_MAX = 300  # of a secret whose beginning is looked for: messages quote less


def secrets_of(spec: ProjectSpec) -> list[str]:
    """What the project itself holds of secrets, references being filled in."""
    found = [value for name, value in spec.headers if is_secret_header(name)]
    found += [value.partition(" ")[2] for value in found]  # behind "Bearer"
    options = spec.options
    if options is not None:
        if options.bearer_token is not None:
            found.append(options.bearer_token)
        if options.basic_auth is not None:
            found += _of_login(options.basic_auth)
    if "@" in spec.url:
        login, at, _ = spec.url.partition("://")[2].partition("/")[0].rpartition("@")
        if at:
            found += [login, *_of_login(unquote(login))]
    return found


def _of_login(login: str) -> Iterator[str]:
    yield login.partition(":")[2]
    yield credentials_of(login.encode("utf-8", "surrogateescape"))


def hand_over_hidden(spec: ProjectSpec, found: list[str], done: OnOutcome, outcome: ProbeOutcome) -> None:
    """``found``: what the references of ``spec`` stood for.  Only a message costs anything."""
    message = outcome.error_message
    if message is not None and (shown := hidden(message, [*found, *secrets_of(spec)])) != message:
        outcome = msgspec.structs.replace(outcome, error_message=shown)
    done(outcome)


def hidden(message: str, secrets: Iterable[str]) -> str:
    """The message without these, nor the beginnings of those that it cuts off."""
    forms = {form for secret in secrets for form in _forms(secret) if len(form) >= HIDDEN_CHARS_MIN}
    for form in sorted(forms, key=len, reverse=True):
        message = _without_beginnings(message.replace(form, MASK), form)
    return message


def _without_beginnings(message: str, secret: str) -> str:
    beginning = secret[:HIDDEN_CHARS_MIN]
    start = message.find(beginning)
    while start >= 0:
        end = start + HIDDEN_CHARS_MIN
        for character in secret[HIDDEN_CHARS_MIN:CUT_CHARS_MAX]:
            if end == len(message) or message[end] != character:
                break
            end += 1
        if end == len(message) or message.startswith(CUT_MARKS, end):
            message = message[:start] + MASK + message[end:]
        start = message.find(beginning, start + 1)
    return message


def _forms(secret: str) -> Iterator[str]:
    """As it is, as JSON writes it, and either of them as Python quotes it."""
    yield secret
    if not secret.isascii() or not secret.isprintable() or any(mark in secret for mark in "\"'\\"):
        as_json = orjson.dumps(secret.encode("utf-8", "replace").decode()).decode()[1:-1]
        for form in (secret, as_json):
            yield form
            yield repr(form)[1:-1]
            yield repr(form + "'")[1:-2].replace("\\'", "'")
            yield form.encode("unicode_escape").decode()
