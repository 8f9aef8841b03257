"""JSON paths (RFC 9535) and regular expressions (RE2) as people write them: what is valid, and compiling it.  Pure.

Both libraries are imported by the first path or pattern that is compiled: a process that has none pays nothing.
A path is evaluated in worker/probe/json_document.py, with a bound on the work.
"""

import functools
from typing import TYPE_CHECKING, Any, cast

from cluster.errors import InvalidInputError

if TYPE_CHECKING:
    from jsonpath_rfc9535 import JSONPathEnvironment, JSONPathQuery

PATH_CHARS_MAX = 1_000
PATHS_KEPT = 4_096
PATTERNS_KEPT = 1_024
PATTERN_MAX_MEM_BYTES = 512 << 10  # of a compiled pattern, what RE2 keeps of its searches included
PATTERN_PROGRAM_MAX = 500  # instructions: the steps that a byte may take at worst, of about 8 ns each


@functools.lru_cache(maxsize=PATHS_KEPT)
def check_path(path: str) -> None:
    """Raises InvalidInputError in words for people."""
    compile_path(path, _plain_environment())


def compile_path(path: str, environment: "JSONPathEnvironment") -> "JSONPathQuery":
    """Raises InvalidInputError in words for people."""
    if len(path) > PATH_CHARS_MAX:
        raise InvalidInputError(f"the path must be at most {PATH_CHARS_MAX} characters, not {len(path)}")
    from jsonpath_rfc9535 import JSONPathError  # noqa: PLC0415 - see above

    try:
        path.encode()
        return environment.compile(path)
    except UnicodeEncodeError:
        raise InvalidInputError(f"the path {path[:100]!a} is not valid Unicode") from None
    except (JSONPathError, RecursionError, ValueError) as error:
        why = str(error).partition("\n")[0] or "nested too deep"
        raise InvalidInputError(
            f"{path[:100]!a} is not a JSON path such as $.items[0].name: {ascii(why[:150])[1:-1]}"
        ) from error


@functools.lru_cache(maxsize=1)
def _plain_environment() -> "JSONPathEnvironment":
    from jsonpath_rfc9535 import JSONPathEnvironment  # noqa: PLC0415 - see above

    return JSONPathEnvironment()


@functools.lru_cache(maxsize=PATTERNS_KEPT)
def compile_pattern(pattern: str) -> Any:
    """A regular expression of RE2, for bytes in UTF-8.  Raises InvalidInputError in words for people."""
    import re2  # type: ignore[import-untyped]  # noqa: PLC0415 - see above

    options = re2.Options()
    options.max_mem = PATTERN_MAX_MEM_BYTES
    options.log_errors = False
    options.never_capture = True
    try:
        compiled = re2.compile(pattern, options)
    except (re2.error, UnicodeEncodeError) as error:
        why = error.args[0] if isinstance(error, re2.error) and error.args else "not valid Unicode"
        why = why.decode("utf-8", "replace") if isinstance(why, bytes) else str(why)
        raise InvalidInputError(
            f"{pattern[:100]!a} is not a regular expression of RE2 (which has neither backreferences nor "
            f"look-around): {ascii(why[:150])[1:-1]}"
        ) from error
    if compiled.programsize > PATTERN_PROGRAM_MAX:
        raise InvalidInputError(
            f"the regular expression {pattern[:100]!a} is too large: {compiled.programsize} instructions of at "
            f"most {PATTERN_PROGRAM_MAX}; repeat less in it"
        )
    return cast("Any", compiled)
