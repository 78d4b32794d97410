"""Tables, and heads of devices, as the verbs print them."""

from __future__ import annotations

from typing import Any

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


def head_of(device: dict[str, Any]) -> Text:
    """What a device is, and how it is set, in two lines."""
    ring, head = device["ring"], Text()
    head.append(f"{device['name']}: {device['driver']}", style="bold")
    head.append(
        f", process {device['pid']}, link {'up' if device['link'] else 'down'}, mtu {device['mtu']}, "
        f"{', '.join(device['addresses'] or ['no address'])}, {device['mac']}\n"
        f"ring: rx {ring['rx_pending']}, rx-buf-len {ring['rx_buf_len'] or 'as the memory has it'}, "
        f"tcp-data-split {ring['tcp_data_split']}, hds-thresh {ring['hds_thresh']}"
    )
    return head
