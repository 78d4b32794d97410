"""`netmem show --watch`: what receivers do, live."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import BindingType
from textual.containers import Grid, Vertical
from textual.css.query import NoMatches
from textual.message import Message
from textual.widgets import DataTable, Footer, Header, Input, Label, Static, Tab, Tabs

from netmem.base.history import DeviceHistory, History, trouble
from netmem.cli.tables import head_of

Look = Callable[[], list[dict[str, Any]]]
COLUMNS = ("peer", "port", "state", "q", "MB/s", "in MB", "out MB", "unread", "window", "held", "tokens")
ROWS = 100  # sockets on the screen at once: a table of a thousand takes a CPU half a second each time
PLAIN = {"k": 1e3, "M": 1e6, "G": 1e9}


def short(value: float, unit: str = "") -> str:
    """A number in at most five characters, and its unit: 12.3k, 980, 4.56G."""
    for prefix, size in reversed(PLAIN.items()):
        if abs(value) >= size:
            return f"{value / size:.3g}{prefix}{unit}"
    return f"{value:.3g}{unit}"


# Of a device: name of the series, what it is called, and how a value of it is said.
LINES: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("bytes", "received", lambda v: f"{v * 8 / 1e9:.2f} Gbit/s"),
    ("packets", "packets", lambda v: short(v, "/s")),
    ("split", "split", lambda v: short(v, "/s")),
    ("miss", "not split", lambda v: short(v, "/s")),
    ("free", "pool free", lambda v: f"{v:.0%}"),
    ("window", "window", lambda v: f"{v / (1 << 20):.1f} MiB"),
    ("unread", "unread", lambda v: f"{v / (1 << 20):.1f} MiB"),
    ("tokens", "tokens held", lambda v: short(v)),
    ("drops", "drops", lambda v: short(v, "/s")),
)
MOST = {"free": 1.0}  # series whose highest bar is that, whatever was seen
BARS = " ▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int, most: float = 0.0) -> str:
    """Bars from 0 to the highest value (or ``most``), one for each value, as many as there is room for.

    What is not nothing can be seen.
    """
    top = most or max(values, default=0.0)
    bars = (math.ceil(value / top * (len(BARS) - 1)) if top > 0 else 0 for value in values[:width])
    return "".join(BARS[min(max(bar, 0), len(BARS) - 1)] for bar in bars)


def title(history: DeviceHistory) -> Text:
    """What a device is, how it is set, what its queues have, and what was refused."""
    device, memory = history.now, []
    for queue in device["queues"]:
        provider = queue["provider"]
        what = f"{provider['memory']} {provider['size'] >> 20} MiB" if provider else "pages"
        memory.append(f"q{queue['id']} {what}")
    text = head_of(device)
    text.append(f"\n{', '.join(memory)}")
    if refused := trouble(device):
        text.append("\nrefused: " + ", ".join(f"{name} {n}" for name, n in refused.items()), style="yellow")
    return text


class Looked(Message):
    """What a look brought, and when (time.monotonic)."""

    def __init__(self, devices: list[dict[str, Any]], at: float) -> None:
        super().__init__()
        self.devices, self.at = devices, at


class Watch(App[str]):
    """The live view. Returns why it ended, if not by the user."""

    TITLE = "netmem show"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #lines { grid-size: 4; grid-columns: 12 13 1fr 19; grid-rows: 1; height: auto; margin: 1 0; }
    #lines .value, #lines .peak { text-align: right; padding-right: 1; }
    #lines .peak { color: $text-muted; }
    #lines .bars { color: $accent; }
    #filter { display: none; height: 3; }
    #filter.shown { display: block; }
    #sockets { height: 1fr; }
    Tabs { display: none; }
    Tabs.several { display: block; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        ("q", "quit", "Quit"), ("slash", "filter", "Filter sockets"), ("escape", "all", "All sockets"),
        ("p", "pause", "Pause"), ("n", "next", "Next device"),
    ]  # fmt: skip

    def __init__(self, look: Look, interval: float) -> None:
        super().__init__()
        self.look, self.interval = look, interval
        self.history = History()
        self.paused, self.only = False, ""
        self._looking = False

    def compose(self) -> ComposeResult:
        """The parts, top to bottom."""
        yield Header(icon="")
        yield Tabs()
        with Vertical():
            yield Static(id="title")
            with Grid(id="lines"):
                for name, label, _ in LINES:
                    yield Label(label)
                    yield Label("", id=f"{name}-value", classes="value")
                    yield Static(id=name, classes="bars")
                    yield Label("", id=f"{name}-peak", classes="peak")
            yield Input(placeholder="sockets whose peer, port, state or queue (q1) has ...", id="filter")
            yield DataTable(id="sockets", cursor_type="row", zebra_stripes=True)
        yield Footer()

    def on_mount(self) -> None:
        """Begin to look."""
        self.query_one(DataTable).add_columns(*COLUMNS)
        self.query_one(DataTable).focus()
        self.set_interval(self.interval, self.sample)
        self.sample()

    @work(thread=True)
    def sample(self) -> None:
        """Look once, beside the screen's work; one look at a time."""
        if self._looking or self.paused:
            return
        self._looking = True
        try:
            self.post_message(Looked(self.look(), time.monotonic()))
        finally:
            self._looking = False

    async def on_looked(self, looked: Looked) -> None:
        """Show what a look brought; the end when nothing is there any more."""
        if not looked.devices:
            self.exit("the last receiver has ended")
            return
        self.history.add(looked.devices, looked.at)
        with contextlib.suppress(NoMatches):  # the screen is being taken apart: the view ends
            await self._follow_devices()
        self.draw()

    async def _follow_devices(self) -> None:
        """A tab for each device. One after the other: Tabs picks a neighbour of one that goes."""
        tabs = self.query_one(Tabs)
        wanted = {f"d{pid}-{name}": f"{name} of {pid}" for pid, name in self.history.devices}
        have = {str(tab.id) for tab in tabs.query(Tab)}
        for key, label in wanted.items():
            if key not in have:
                await tabs.add_tab(Tab(label, id=key))
        for key in have - set(wanted):
            await tabs.remove_tab(key)
        tabs.set_class(len(wanted) > 1, "several")

    @property
    def shown(self) -> DeviceHistory | None:
        """The device on the screen."""
        active = self.query_one(Tabs).active
        for (pid, name), history in self.history.devices.items():
            if active in ("", f"d{pid}-{name}"):
                return history
        return next(iter(self.history.devices.values()), None)

    def draw(self) -> None:
        """The screen anew."""
        with contextlib.suppress(NoMatches):  # as above
            if (history := self.shown) is not None:
                self._draw(history)

    def _draw(self, history: DeviceHistory) -> None:
        self.query_one("#title", Static).update(title(history))
        for name, _, say in LINES:
            values = list(history.series[name])
            newest = values[::-1]  # on the left
            bars = self.query_one(f"#{name}", Static)
            bars.update(sparkline(newest, bars.size.width, MOST.get(name, 0.0)))
            self.query_one(f"#{name}-value", Label).update(say(newest[0]) if newest else "")
            edge = (min if name == "free" else max)(values, default=0.0)
            word = "least" if name == "free" else "most"
            self.query_one(f"#{name}-peak", Label).update(f"{word} {say(edge)}" if values else "")
        table = self.query_one(DataTable)
        x, y, row = table.scroll_x, table.scroll_y, table.cursor_row
        table.clear()
        found = history.busiest(self.only)
        for one in found[:ROWS]:
            table.add_row(*_cells(one))
        table.move_cursor(row=min(row, max(table.row_count - 1, 0)), scroll=False)
        table.scroll_to(x, y, animate=False)
        total = len(history.now["sockets"])
        least = f"the busiest {ROWS} of " if len(found) > ROWS else ""
        which = f"{least}{len(found)} of {total}" if self.only else f"{least}{total}"
        self.sub_title = f"{which} sockets" + (" (paused)" if self.paused else "")

    def on_tabs_tab_activated(self) -> None:
        """Another device."""
        self.draw()

    def on_input_changed(self, event: Input.Changed) -> None:
        """The filter follows what is typed."""
        self.only = event.value.strip()
        self.draw()

    def on_input_submitted(self) -> None:
        """Back to the table, with the filter as it is."""
        self.query_one(DataTable).focus()

    def action_filter(self) -> None:
        """Ask what sockets are to be shown."""
        self.query_one("#filter").add_class("shown")
        self.query_one("#filter", Input).focus()

    def action_all(self) -> None:
        """No filter."""
        box = self.query_one("#filter", Input)
        box.value = ""
        box.remove_class("shown")
        self.query_one(DataTable).focus()

    def action_pause(self) -> None:
        """Stand still, or go on."""
        self.paused = not self.paused
        self.draw()

    def action_next(self) -> None:
        """The next device."""
        self.query_one(Tabs).action_next_tab()


def _cells(one: dict[str, Any]) -> list[Text]:
    """A socket's row: numbers to the right."""
    numbers = [
        "" if one["queue"] is None else str(one["queue"]), f"{one['rate'] / 1e6:.1f}",
        f"{(one['bytes_in'] or 0) / 1e6:.1f}", f"{(one['bytes_out'] or 0) / 1e6:.1f}", short(one["queued"]),
        "" if one["window"] is None else short(one["window"]), str(one["buffers"]), str(one["tokens"]),
    ]  # fmt: skip
    words = [Text(one["peer"]), Text(str(one["port"]), justify="right"), Text(one["state"])]
    return words + [Text(number, justify="right") for number in numbers]


def watch(look: Look, interval: float) -> str | None:
    """Show what ``look`` finds every ``interval`` seconds until the user has seen enough; why it ended."""
    return Watch(look, interval).run()
