"""Pictures of what netmem shows, for README: `make pictures`. They go to docs/pictures.

Each is of a real run: a demo, a check, the live view and the report of a receiver with forty connections.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

from netmem.cli.watch import Watch
from netmem.lab.observe import observe

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "pictures"
NETMEM = [sys.executable, "-m", "netmem.cli.entry"]
CLIENTS, BUSY, SECONDS = 40, 4, 14.0


def terminal(name: str, width: int, *words: str) -> None:
    """What a command prints on a terminal."""
    environment = {**os.environ, "COLUMNS": str(width)}
    if words[0] == "check":  # a terminal's colours, from what moves nothing about
        environment |= {"FORCE_COLOR": "1", "TERM": "xterm-256color"}
    done = subprocess.run(
        [*NETMEM, *words], capture_output=True, text=True, cwd=ROOT / "examples", env=environment
    )
    console = Console(record=True, width=width, file=open(os.devnull, "w"))
    console.print(Text(f"$ netmem {' '.join(words)}", style="bold"))
    console.print(Text.from_ansi(done.stdout.rstrip()))
    console.save_svg(str(FOLDER / f"{name}.svg"), title=f"netmem {words[0]}")


def client(port: int, number: int, end: float) -> None:
    """A few send much, the others a little."""
    data = bytes(200_000 if number < BUSY else 700)
    with socket.create_connection(("127.0.0.1", port)) as sock:
        while time.monotonic() < end:
            sock.sendall(data)
            time.sleep(0.004 if number < BUSY else 0.4)


async def live(pid: int) -> None:
    """The live view, after some seconds."""
    app = Watch(lambda: observe(pid), 0.25)
    async with app.run_test(size=(106, 32)) as pilot:
        await pilot.pause(SECONDS / 2)
        app.save_screenshot(str(FOLDER / "watch.svg"))


def receiver() -> None:
    """A receiver, looked at while it runs and after it ended."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        sys.exit("pictures: no Chromium is here (apt install chromium)")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        words = ("recv", "--listen", "127.0.0.1:0", "--exporter", "memfd", "--rx-page-size", "64K", "-q")
        process = subprocess.Popen(
            [*NETMEM, *words, "--count", str(CLIENTS), "--report", str(page)],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        found = re.search(r"listening on \S+:(\d+)", process.stderr.readline())
        assert found is not None
        end = time.monotonic() + SECONDS
        clients = [threading.Thread(target=client, args=(int(found[1]), n, end)) for n in range(CLIENTS)]
        for one in clients:
            one.start()
        asyncio.run(live(process.pid))
        for one in clients:
            one.join()
        process.communicate(timeout=60)
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--window-size=1240,1640",
        ]
        options += ["--virtual-time-budget=4000", f"--screenshot={FOLDER / 'report.png'}", f"file://{page}"]
        subprocess.run([chromium, *options], check=True, capture_output=True, timeout=60)


def main() -> None:
    """All of them."""
    FOLDER.mkdir(exist_ok=True)
    terminal("demo", 82, "demo", "--size", "64M")
    terminal("check", 156, "check", "tiny_driver:TinyDriver")
    receiver()
    for path in sorted(FOLDER.iterdir()):
        print(f"{path.relative_to(ROOT)}  {path.stat().st_size >> 10} KiB")


if __name__ == "__main__":
    main()
