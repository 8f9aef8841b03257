"""``cluster top``: what the cluster does, live in a terminal.

Drawn with rich and read with termios: both are here already, and one list of text lines is all there is to draw.  A
framework of widgets would bring an event loop and styles of its own, one more thing to keep up with, for none of them.
"""

import os
import sys
import time
from typing import Any

import click
import msgspec

from cluster.admin_client import AdminClient
from cluster.cli.options import DATABASE, with_settings
from cluster.errors import InvalidInputError
from cluster.settings import Settings

DRAW_EVERY_S = 1.0  # with no news: how long it is ago goes on
SIGNALLED = 128  # and the number of the signal


@click.command()
@with_settings(*DATABASE, "admin_endpoint")
def top(settings: Settings) -> int:
    """Watch the cluster: workers, slow and failing projects, changes.

    Workers come from the admin socket each second, projects and changes from the database. Press ? for the keys. With
    NO_COLOR set there are no colours.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or os.environ.get("TERM", "") in {"", "dumb"}:
        raise InvalidInputError(
            "cluster top needs a terminal; for a pipe or a file there are `cluster status --watch` and "
            "`cluster status --json`"
        )
    with AdminClient(settings) as client:  # none that runs is said before the screen is taken
        first = client.request({"type": "status"})["status"]
    return watch(settings, first)


def watch(settings: Settings, first: dict[str, Any]) -> int:
    from rich.console import Console, ConsoleDimensions  # noqa: PLC0415 - rich is slow to import

    from cluster.top.feed import Feed  # noqa: PLC0415
    from cluster.top.screen import ansi_of, draw, page_rows, rows_in_view  # noqa: PLC0415
    from cluster.top.state import ViewState, press  # noqa: PLC0415
    from cluster.top.terminal import Terminal  # noqa: PLC0415

    view = ViewState()
    console = Console(force_terminal=True, highlight=False, legacy_windows=False)
    with Terminal() as terminal:
        feed = Feed(settings, terminal.wake)
        try:
            feed.start(first)
            known = feed.snapshot
            while not view.is_over and terminal.ending is None:
                width, height = terminal.size
                newest = feed.snapshot
                # What is held stays; a project that is looked into meanwhile is read all the same.
                known = msgspec.structs.replace(known, detail=newest.detail) if view.is_paused else newest
                console.size = ConsoleDimensions(width, height)
                lines = draw(view, known, width=width, height=height, now=time.monotonic())
                terminal.show(ansi_of(console, lines))
                for key in terminal.wait(DRAW_EVERY_S):
                    page = page_rows(view, known, width, height)
                    view = press(view, key, rows_in_view(view, known), page)
                feed.want(view.project_id)
        finally:
            feed.stop()
    return 0 if terminal.ending is None else SIGNALLED + terminal.ending


COMMANDS: list[Any] = [top]
