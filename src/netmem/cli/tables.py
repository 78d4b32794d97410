"""Tables as the verbs print them."""

from __future__ import annotations

from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

WIDTH = 160


def table(columns: str, rows: list[list[object]], *, gives: str = "") -> Table:
    """A plain table; ``columns`` are separated by |, those with < in front are left-aligned. ``gives``: the
    column that alone becomes narrower, and wraps, where there is no room.

    Markup is what ``Text`` cells have; in all others it is text.
    """
    made = Table(box=None, pad_edge=False, padding=(0, 1))
    for number, name in enumerate(columns.split("|")):
        left, title = name.startswith("<"), name.lstrip("<")
        justify: JustifyMethod = "left" if left else "right"
        needs = max([len(title), *(len(str(row[number])) for row in rows)])
        least = needs if gives and title != gives else None
        made.add_column(
            title, justify=justify, header_style="bold", no_wrap=not gives or title != gives, min_width=least
        )
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    return made
