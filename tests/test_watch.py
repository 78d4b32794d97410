"""The live view: histories, the screen as a user drives it, a terminal of its own."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import pty
import select
import socket
import subprocess
import sys
import time

import pytest
from textual.widgets import DataTable, Input, Static

from conftest import payload, scaled
from netmem.base.history import DeviceHistory, History
from netmem.cli.watch import ROWS, Watch, short, sparkline
from netmem.lab.device import open_device
from netmem.lab.observe import observe
from netmem.memory.providers.dmabuf import DmabufProvider

LIMIT = 60


def device(at: float, sockets: int = 3, name: str = "nm0", **counters: int) -> dict:
    """What ``observe`` says, of a device whose socket n receives n MB in a second."""
    pool = {"buffers": 100, "share": 1, "available": 75, "id": 1, "alloc_fast": 9, "alloc_slow": 1}
    return {
        "pid": 7, "name": name, "driver": "softnic", "link": True, "mtu": 1500, "addresses": ["10.0.2.15"],
        "mac": "02",
        "ring": {"tcp_data_split": "enabled", "rx_pending": 1024, "rx_buf_len": 0, "hds_thresh": 0},
        "counters": {"rx_bad_checksum": int(2 * at), "rx_packets": int(1000 * at), **counters},
        "queues": [
            {"id": 0, "provider": None, "pool": None},
            {
                "id": 1, "provider": {"memory": "dmabuf", "size": 64 << 20, "binding": 1}, "pool": pool,
                "bytes": int(5e6 * at), "packets": int(1000 * at), "hds_hit": int(900 * at),
                "hds_miss": int(100 * at), "starved": 0,
            },
        ],
        "sockets": [
            {
                "peer": f"10.0.0.{n // 250}:{n}", "port": 5001, "state": "ESTABLISHED", "queue": n % 2,
                "bytes_in": int(n * 1e6 * at), "bytes_out": 0, "queued": 10, "window": 65536, "tokens": 2,
                "buffers": 2, "out_of_order": 0, "pledged": 0,
            }
            for n in range(sockets)
        ],
    }  # fmt: skip


def test_rates_and_levels():
    history = DeviceHistory(4)
    for at in (1.0, 1.5, 2.0, 3.0, 4.0, 5.0):
        history.add(device(at), at)
    assert list(history.times) == [2.0, 3.0, 4.0, 5.0]
    assert list(history.series["bytes"]) == pytest.approx([5e6] * 4)
    assert list(history.series["split"]) == pytest.approx([900] * 4)
    assert list(history.series["miss"]) == pytest.approx([100] * 4)
    assert list(history.series["drops"]) == pytest.approx([2] * 4)
    assert set(history.series["free"]) == {0.75}
    assert set(history.series["tokens"]) == {6}
    assert [one["peer"] for one in history.busiest()] == ["10.0.0.0:2", "10.0.0.0:1", "10.0.0.0:0"]
    assert history.busiest()[0]["rate"] == pytest.approx(2e6)
    assert [one["peer"] for one in history.busiest("Q1")] == ["10.0.0.0:1"]
    history.thin()
    assert list(history.times) == [2.5, 4.5]


def test_sockets_that_come_and_go():
    history = DeviceHistory(4)
    history.add(device(1, 2), 1)
    history.add(device(2, 5), 2)
    assert len(history.busiest()) == 5
    history.add(device(3, 1), 3)
    assert set(history.socket_rates) == {("10.0.0.0:0", 5001)}
    both = History()
    both.add([device(1), device(1, name="nm1")], 1)
    both.add([device(2, name="nm1")], 2)
    assert list(both.devices) == [(7, "nm1")]


def test_bars_and_numbers():
    assert sparkline([0, 1, 4, 8], 10) == " ▁▄█"
    assert sparkline([8, 8, 8], 2) == "██"
    assert sparkline([0.001, 1.0], 9, 1.0) == "▁█"
    assert sparkline([], 5) == ""
    assert sparkline([0, 0], 5) == "  "
    assert [short(v) for v in (0, 12, 999, 12_345, 7.5e6, 2e9)] == ["0", "12", "999", "12.3k", "7.5M", "2G"]


def on_screen(look, drive, *, size=(110, 34), interval=0.05):
    """Run the view on what ``look`` says and let ``drive(app, pilot)`` use it."""

    async def main():
        app = Watch(look, interval)
        async with app.run_test(size=size) as pilot:
            await drive(app, pilot)
        return app

    return asyncio.run(asyncio.wait_for(main(), LIMIT))


async def until(pilot, ready):
    end = time.monotonic() + LIMIT / 2
    while not ready():
        assert time.monotonic() < end
        await pilot.pause(0.02)


def words(app, name):
    return str(app.query_one(name, Static).render())


def test_a_thousand_sockets():
    start = time.monotonic()

    async def drive(app, pilot):
        table = app.query_one(DataTable)
        await until(pilot, lambda: table.row_count == ROWS and len(app.shown.times) > 2)
        assert app.sub_title == "the busiest 100 of 1000 sockets"
        assert str(table.get_row_at(0)[0]) == "10.0.0.3:999"
        began = time.monotonic()
        app.draw()
        assert time.monotonic() - began < 0.5
        await pilot.press("slash", "9", "9")
        assert app.query_one(Input).value == "99"
        await until(pilot, lambda: table.row_count == 19)  # 99, 199 to 999, 990 to 998
        assert app.sub_title == "19 of 1000 sockets"
        await pilot.press("escape")
        await until(pilot, lambda: table.row_count == ROWS)
        await pilot.press("down", "down", "down")
        row, seen = table.cursor_row, len(app.shown.times)
        await until(pilot, lambda: len(app.shown.times) > seen + 2)
        assert table.cursor_row == row > 0

    on_screen(lambda: [device(time.monotonic() - start, 1000)], drive, interval=0.3)


def test_devices_come_and_go(caplog):
    start, names = time.monotonic(), ["nm0"]

    def look():
        return [device(time.monotonic() - start, name=name) for name in names]

    async def drive(app, pilot):
        for wanted in (["nm0", "nm1"], ["nm1"], ["nm1", "nm2", "nm3"], ["nm3"]):
            names[:] = wanted
            await until(pilot, lambda: [name for _, name in app.history.devices] == names)
            await until(pilot, lambda: any(name in words(app, "#title") for name in names))

    on_screen(look, drive)
    gc.collect()  # what failed and nobody waited for is told then
    assert not caplog.records


def test_pause_filter_and_the_end():
    start, there = time.monotonic(), [True]

    def look():
        found = device(time.monotonic() - start), device(time.monotonic() - start, name="nm1")
        return list(found) if there[0] else []

    async def drive(app, pilot):
        await until(pilot, lambda: app.shown is not None and len(app.shown.times) > 2)
        assert "nm0" in words(app, "#title")
        await pilot.press("p")
        seen = len(app.shown.times)
        await pilot.pause(0.3)
        assert len(app.shown.times) <= seen + 1
        assert "paused" in app.sub_title
        await pilot.press("p", "n")
        await until(pilot, lambda: "nm1" in words(app, "#title"))
        await pilot.press("slash")
        assert isinstance(app.focused, Input)
        await pilot.press("enter")
        assert isinstance(app.focused, DataTable)
        there[0] = False
        await until(pilot, lambda: app.return_value is not None)

    assert on_screen(look, drive).return_value == "the last receiver has ended"


@pytest.mark.process
def test_a_real_receiver():
    with open_device() as device_, DmabufProvider(8 << 20, exporter="memfd") as memory:
        device_.ethtool.set_ringparam(tcp_data_split="on")
        with device_.bind_rx([1], memory):
            device_.steer(5001, 1)
            listener, port = device_.listen(5001), device_.forward("127.0.0.1", 0, 5001)
            with socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as client:
                sock = listener.accept(LIMIT)

                async def drive(app, pilot):
                    await until(pilot, lambda: app.query_one(DataTable).row_count == 1)
                    client.sendall(payload(scaled(500_000)))
                    await until(pilot, lambda: max(app.shown.series["bytes"], default=0) > 0)
                    assert max(app.shown.series["split"]) > 0
                    row = app.query_one(DataTable).get_row_at(0)
                    assert (str(row[1]), str(row[2])) == ("5001", "ESTABLISHED")
                    await until(pilot, lambda: words(app, "#bytes").strip())
                    await pilot.press("q")

                on_screen(lambda: observe(os.getpid()), drive)
                sock.close()


@pytest.mark.process
def test_in_a_terminal():
    """As a user starts it: keys in, and status 0 when it is left."""
    with open_device() as device_:
        device_.listen(5001)
        master, slave = pty.openpty()
        argv = [sys.executable, "-m", "netmem.cli.entry", "show", "--watch", str(os.getpid())]
        environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
        with subprocess.Popen(argv, stdin=slave, stdout=slave, stderr=slave, env=environment) as process:
            os.close(slave)
            ready = select.poll()  # select() takes no descriptor above 1,023: others may be open
            ready.register(master, select.POLLIN)
            screen, end = b"", time.monotonic() + LIMIT
            while b"pool free" not in screen and time.monotonic() < end:
                if ready.poll(1000):
                    screen += os.read(master, 1 << 16)
            assert b"pool free" in screen
            os.write(master, b"q")
            while process.poll() is None and time.monotonic() < end:
                if ready.poll(200):
                    with contextlib.suppress(OSError):
                        os.read(master, 1 << 16)
            assert process.wait(LIMIT) == 0
        os.close(master)
