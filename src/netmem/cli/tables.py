"""Tables as the verbs print them."""

from __future__ import annotations

from rich.console import JustifyMethod
from rich.table import Table
from rich.text import Text

WIDTH = 160


def table(columns: str, rows: list[list[object]]) -> Table:
    """A plain table; ``columns`` are separated by |, those with < in front are left-aligned.

    Markup is what ``Text`` cells have; in all others it is text.
    """
    made = Table(box=None, pad_edge=False, padding=(0, 1))
    for name in columns.split("|"):
        left = name.startswith("<")
        justify: JustifyMethod = "left" if left else "right"
        made.add_column(name.lstrip("<"), justify=justify, header_style="bold", no_wrap=True)
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    return made
