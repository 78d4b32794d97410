"""A report of a run: one self-contained page of what its devices did over time.

``netmem recv --report FILE``, or NETMEM_REPORT=FILE in the environment of any program that opens a device. A
process of its own looks at the program, as `netmem show` does, and writes the page at the end, also when the
program is killed.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import html
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from netmem.base.errors import MissingError, NetmemError
from netmem.base.history import DeviceHistory, History, totals, trouble
from netmem.hw.process import python_argv
from netmem.lab.observe import observe

VARIABLE = "NETMEM_REPORT"
INTERVAL_S, KEEP = 0.1, 1200  # samples: every other one goes when there are more, and half as many come
END_S = 30.0  # to write the page
GAP = 0.09


class Recorder:
    """Watches this process from outside until ``finish``.

    ``path``: the page; {pid} stands for this process. ENOENT, EISDIR, EACCES where it cannot be written;
    MissingError without Plotly.
    """

    def __init__(self, path: str) -> None:
        self.path = path.replace("{pid}", str(os.getpid()))
        check(self.path)
        self._process = subprocess.Popen(
            python_argv("netmem.lab.report", self.path, str(os.getpid())), stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
            env={name: value for name, value in os.environ.items() if name != VARIABLE},
        )  # fmt: skip

    def _ask(self, word: str) -> str:
        """Have the process do something; what it says."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(f"{word}\n")
            process.stdin.flush()
        if not _readable(process.stdout.fileno(), END_S):
            return f"it took more than {END_S:g} s"
        return process.stdout.readline().strip() or "its process has ended"

    def look(self) -> None:
        """A first look, before anything happens: however short it will be."""
        self._ask("look")

    def finish(self) -> str:
        """The last look, now; the page is written. What went wrong, if anything did."""
        try:
            said = self._ask("end")
        finally:
            self._process.kill()
            with contextlib.suppress(BrokenPipeError), self._process:  # it has gone before
                pass
        return "" if said == "written" else said


def _readable(fd: int, seconds: float) -> bool:
    """Whether there is something to read, or the end, within ``seconds``."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1e3))


def check(path: str) -> None:
    """Refuse a page that cannot be written, before anything is started."""
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise NetmemError(errno.ENOENT, f"report {path}: there is no folder {folder}")
    if os.path.isdir(path):
        raise NetmemError(errno.EISDIR, f"report {path} is a folder")
    if not os.access(path if os.path.exists(path) else folder, os.W_OK):
        raise NetmemError(errno.EACCES, f"report {path}: it cannot be written there")
    try:
        import plotly  # noqa: F401
    except ImportError:
        raise MissingError("a report needs Plotly: pip install 'pynetmem[lab]'") from None


_lock = threading.Lock()
_recorder: Recorder | None = None
_devices = 0  # of this process that are watched, and others who asked for it


def begin(path: str = "") -> bool:
    """One more wants this process watched; the first that names a page, or NETMEM_REPORT, decides where."""
    global _recorder, _devices
    with _lock:
        if _recorder is None:
            named = path or os.environ.get(VARIABLE, "")
            if not named:
                return False
            _recorder = Recorder(named)
            if not path:  # of the whole program, however many devices it opens, one after the other
                _devices += 1
                atexit.register(end)
        _devices += 1
    return True


@contextlib.contextmanager
def reporting(path: str) -> Iterator[None]:
    """A report of all devices of this process that are open meanwhile. Errors: ``Recorder``."""
    asked = begin(path)
    try:
        yield
    finally:
        if asked:
            end()


def look() -> None:
    """A watched device is open."""
    with _lock:
        if _recorder is not None:
            _recorder.look()


def end() -> bool:
    """A watched device ends, and with the last of them the report: True when that was written now."""
    global _recorder, _devices
    with _lock:
        _devices -= 1
        recorder = _recorder
        if recorder is None:
            return False
        if _devices:
            recorder.look()  # for the last time at this one
            return False
        _recorder = None
    if why := recorder.finish():
        print(f"netmem: no report in {recorder.path}: {why}", file=sys.stderr)
    return not why


def record(path: str, pid: int) -> None:
    """The recorder's process: looks until its standard input says so, or ends; then writes the page."""
    history, start, interval = History(KEEP, forget=False), time.monotonic(), INTERVAL_S
    word = "look"
    while word == "look":
        told = _readable(sys.stdin.fileno(), interval)
        word = sys.stdin.readline().strip() if told else "look"  # "": who is watched has ended
        history.add(observe(pid), time.monotonic() - start)
        for device in history.devices.values():
            if len(device.times) >= KEEP:
                device.thin()
                interval = min(2 * interval, 60.0)
        if told and word == "look":
            print("looked", flush=True)
    fresh = Path(f"{path}.{os.getpid()}.tmp")
    if not history.devices and os.path.exists(path):
        print("no device was opened: an older report stays there", flush=True)
        return
    try:
        fresh.write_text(page(history))
        fresh.replace(path)
        print("written", flush=True)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        print(error.strerror, flush=True)


# -- the page ------------------------------------------------------------------------------------------------


def _units(bits: int, scale: float) -> str:
    """The lower edge of a histogram's bucket, 1024 ns to the power of two, as text."""
    value = 0.0 if bits == 0 else 2.0 ** (bits - 1) * scale
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return "0"


def _figure(device: DeviceHistory) -> Any:
    """All charts of one device."""
    from plotly.graph_objects import Bar, Scatter
    from plotly.subplots import make_subplots

    names = (
        "Received, Gbit/s", "Pool: free, % of its share", "Windows advertised, MiB, of all sockets",
        "Tokens held by the application", "Packets split and not split, in a second",
        "Dropped or refused, in a second", "Batches by packets in a poll",
        "Frags by how long they waited for the application",
    )  # fmt: skip
    figure = make_subplots(rows=4, cols=2, subplot_titles=names, vertical_spacing=GAP, horizontal_spacing=GAP)
    times = list(device.times)

    def line(row: int, col: int, name: str, series: str, scale: float) -> None:
        values = [value * scale for value in device.series[series]]
        figure.add_trace(Scatter(x=times, y=values, name=name, mode="lines"), row=row, col=col)

    line(1, 1, "Gbit/s", "bytes", 8e-9)
    line(1, 2, "free, %", "free", 100.0)
    line(2, 1, "window, MiB", "window", 2.0**-20)
    line(2, 2, "tokens", "tokens", 1.0)
    line(3, 1, "split", "split", 1.0)
    line(3, 1, "not split", "miss", 1.0)
    line(3, 2, "drops", "drops", 1.0)
    batches, waits = device.now["batches"], device.now["waits"]
    sizes = ["0", *(f"{1 << n - 1} to {(1 << n) - 1}" if n > 1 else "1" for n in range(1, len(batches)))]
    most = max((n for n, count in enumerate(batches) if count), default=0) + 1
    figure.add_trace(Bar(x=sizes[:most], y=batches[:most], name="batches"), row=4, col=1)
    found = [n for n, count in enumerate(waits) if count]
    if found:
        shown = range(found[0], found[-1] + 1)
        edges = [f"{_units(n, 1024)} to {_units(n + 1, 1024)}" for n in shown]
        figure.add_trace(Bar(x=edges, y=[waits[n] for n in shown], name="frags"), row=4, col=2)
    figure.update_xaxes(title_text="seconds", row=3)
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(range=[0, 105], row=1, col=2)
    figure.update_layout(height=1250, showlegend=False, margin={"l": 60, "r": 20, "t": 40, "b": 40},
                         template="plotly_white", font={"family": "sans-serif"})  # fmt: skip
    return figure


def _facts(device: DeviceHistory) -> list[tuple[str, str]]:
    """What is said of a device beside its charts."""
    now = device.now
    ring, sums = now["ring"], totals(now)
    queues = []
    for queue in now["queues"]:
        provider, pool = queue["provider"], queue["pool"]
        what = f"{provider['memory']}, {provider['size'] >> 20} MiB" if provider else "pages, unbound"
        took = f", {pool['alloc_fast'] + pool['alloc_slow']} allocations" if pool else ""
        queues.append(f"{queue['id']}: {what}, {queue.get('bytes', 0)} bytes{took}")
    refused = ", ".join(f"{name} {n}" for name, n in trouble(now).items()) or "nothing"
    starved = sum(queue.get("starved", 0) for queue in now["queues"])
    seconds = device.times[-1] - device.times[0] if device.times else 0.0
    return [
        ("Device", f"{now['name']}: {now['driver']}, mtu {now['mtu']}, {', '.join(now['addresses'] or ())}"),
        ("Settings", f"tcp-data-split {ring['tcp_data_split']}, hds-thresh {ring['hds_thresh']}, "
                     f"rx {ring['rx_pending']}, rx-buf-len {ring['rx_buf_len'] or 'as the memory has it'}"),
        ("Queues", "; ".join(queues)),
        ("Received", f"{sums['bytes']:.0f} bytes in {sums['packets']:.0f} packets, "
                     f"{sums['split']:.0f} of them split, {sums['miss']:.0f} not"),
        ("Refused", refused),
        ("Short of memory", f"{starved} times a ring found none to post"),
        ("Watched", f"{seconds:.1f} s, {len(device.times)} samples"),
    ]  # fmt: skip


STYLE = """body { font: 15px sans-serif; margin: 2em auto; max-width: 1200px; padding: 0 1em; color: #222 }
th { text-align: left; padding-right: 2em; vertical-align: top } h2 { margin-top: 2em }"""


def page(history: History) -> str:
    """The whole page."""
    parts, script = [], True
    for (pid, name), device in history.devices.items():
        rows = "".join(f"<tr><th>{k}</th><td>{html.escape(v)}</td></tr>" for k, v in _facts(device))
        parts.append(f"<h2>{html.escape(name)} of process {pid}</h2><table>{rows}</table>")
        if device.times:
            parts.append(_figure(device).to_html(full_html=False, include_plotlyjs=script))
            script = False
        else:
            parts.append("<p>It was not there long enough to be looked at twice.</p>")
    body = "".join(parts) or "<p>No device was there to be looked at.</p>"
    day = time.strftime("%Y-%m-%d %H:%M:%S")
    head = f'<meta charset="utf-8"><title>netmem report</title><style>{STYLE}</style>'
    top = f"<!doctype html><html lang=en><head>{head}</head><body><h1>netmem report</h1><p>{day}</p>"
    return f"{top}{body}</body></html>"


if __name__ == "__main__":
    record(sys.argv[1], int(sys.argv[2]))
