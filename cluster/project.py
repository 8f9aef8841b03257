"""A project as workers need it, and the rules a project's fields must obey.

``ProjectSpec`` travels from the coordinator to workers.  ``ProjectFields`` is what people write (admin ``add``, the
command line, files); ``validate`` turns it into the canonical form that goes into table ``projects``, or raises
:class:`InvalidInputError` naming the field.  The table's CHECK constraints hold the same rules for rows written
directly in SQL.
"""

import msgspec


class ProjectSpec(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Fields are only appended.  ``since_ms``: when the project was enabled, or its interval changed."""

    id: int
    url: str
    interval_ms: int
    since_ms: int
    method: str = "GET"
    headers: tuple[tuple[str, str], ...] = ()
    body: str | None = None
    expected_status: str = "200"
    timeout_ms: int = 30_000
    follow_redirects: bool = True


encode_spec = msgspec.msgpack.Encoder().encode
decode_spec = msgspec.msgpack.Decoder(ProjectSpec).decode
