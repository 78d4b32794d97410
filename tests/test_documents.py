"""The documents: every program in them runs, every command line is one, the site builds without a warning."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from conftest import need
from netmem.base import cuda
from netmem.base.errors import NetmemError
from netmem.base.jit import COMPILED
from netmem.cli.main import VERBS, cli

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted(p for p in (ROOT / "docs").rglob("*.md") if p.name not in ("layouts.md", "scoreboard.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
WHOLE = sorted([*(ROOT / "docs" / "tutorials").glob("*.md"), ROOT / "docs" / "receive-kernel.md"])
LIMIT = 100
BLOCK = re.compile(
    r"(?:<!-- (?P<mark>[^>]*) -->\n)?^```(?P<kind>python|sh|c)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass
class Block:
    """A fenced block: what kind, what is marked, and its text."""

    kind: str
    mark: str
    text: str


def blocks(path):
    return [Block(m["kind"], m["mark"] or "", m["text"]) for m in BLOCK.finditer(path.read_text())]


def name_of(path):
    return str(path.relative_to(ROOT))


@pytest.mark.process
@pytest.mark.skipif(not COMPILED, reason="programs of many megabytes")
@pytest.mark.parametrize("path", WHOLE, ids=name_of)
def test_a_page_runs_from_top_to_bottom(path, tmp_path):
    """Python blocks are programs or files for what follows; shell blocks run where they are marked."""
    for example in (ROOT / "examples").glob("*.py"):
        shutil.copy(example, tmp_path)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    ran = 0
    for block in blocks(path):
        what, _, how = block.mark.partition(": ")
        if what == "file":
            (tmp_path / how).write_text(block.text)
            continue
        status, wanted = 0, ""
        if block.kind == "python":
            argv = [sys.executable, "-W", "error::DeprecationWarning:netmem", "-c", block.text]
        elif what == "run":
            need(shutil.which("nc"), "nc is not there")
            argv = ["bash", "-e", "-c", block.text]
            status, wanted = re.fullmatch(r"status (\d), (.*)", how).groups()  # what must come of it
        else:
            continue
        done = subprocess.run(
            argv, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=LIMIT
        )
        assert done.returncode == int(status), f"{block.text}\n{done.stdout}{done.stderr}"
        assert re.search(wanted, done.stdout, re.DOTALL), f"{block.text}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        ran += 1
    assert ran, "nothing on this page runs"


def command_lines(text):
    """`netmem ...` of a shell block, as lists of words; what the shell does with it left out."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        for start in (i for i, word in enumerate(words) if word in ("netmem", ".venv/bin/netmem")):
            if (
                start
                and words[start - 1] not in ("sudo", "&&", "|", ";", "RUN")
                and "=" not in words[start - 1]
            ):
                continue
            found = []
            for word in words[start + 1 :]:
                if word in ("&&", "|", ">", "2>", "<", "&", ";", ";do"):
                    break
                found.append(word)
            yield found


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_each_command_line_is_one(path):
    """Verbs and options exist, and are given what they take; nothing is run."""
    for block in blocks(path):
        if block.kind == "sh":
            for words in command_lines(block.text):
                if words and words[0] in VERBS:
                    parse(cli, words)
                else:
                    assert words[:1] in ([], ["VERB"]) or words[0].startswith("-"), words


def test_tests_that_documents_name_are_there():
    named = set()
    for path in PAGES:
        for block in blocks(path):
            named |= set(
                re.findall(r"-m pytest [^\n#]*?(tests/[^\n#]*)", block.text if block.kind == "sh" else "")
            )
    assert named
    for words in sorted(named):
        argv = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--collect-only",
            *shlex.split(words),
        ]
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"


def parse(command, words):
    context = click.Context(command, resilient_parsing=True)
    if isinstance(command, click.Group):
        inner = command.get_command(context, words[0])
        assert inner is not None, f"{command.name} has no {words[0]}"
        parse(inner, words[1:])
        return
    values, _, _ = command.make_parser(context).parse_args(list(words))  # NoSuchOption, BadOptionUsage
    for parameter in command.params:
        if isinstance(parameter.type, click.Choice | click.IntRange | click.FloatRange):
            given = values.get(parameter.name)
            for value in given if isinstance(given, list) else [given]:
                if isinstance(value, str):
                    parameter.type.convert(value, parameter, context)  # BadParameter


def test_python_everywhere_is_python():
    """Also what is a fragment, or runs in a guest."""
    for path in PAGES:
        for block in blocks(path):
            if block.kind == "python" and "..." not in block.text.split("\n")[0]:
                text = block.text
                if text.startswith("    "):
                    text = f"class Driver:\n{text}"
                flags = 0x2000  # PyCF_ALLOW_TOP_LEVEL_AWAIT
                compile(text, name_of(path), "exec", flags=flags)


# What is on other pages: fragments around a connection, or whole programs with a client beside them.
FRAGMENTS = {
    "docs/sockets.md": """
import json, socket, threading, asyncio
import numpy as np, netmem
PROGRAMS = {programs!r}
def later(function, *args):
    threading.Thread(target=function, args=args, daemon=True).start()
def sent(port, data):
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(data); client.shutdown(socket.SHUT_WR); client.recv(1)
with netmem.open_device() as device, netmem.DmabufProvider(64 << 20, rx_page_size=65536) as memory:
    device.ethtool.set_ringparam(tcp_data_split="on")
    with device.bind_rx([1], memory):
        device.steer(5001, queue=1)
        port = device.forward("127.0.0.1", 0, 5001)
        # Several connections of asyncio, until it is cancelled.
        names = {{}}
        exec(PROGRAMS[0], names)
        async def both():
            task = asyncio.create_task(names["main"](device))
            await asyncio.sleep(0.2)
            await asyncio.to_thread(sent, port, bytes(300_000))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        asyncio.run(both())
        listener = device.listen(5001)
        # A reader.
        shape, out = [3, 4], np.empty(5, np.float32)
        data = json.dumps(shape).encode() + b"\\n" + bytes(48 + 20 + 8) + (7).to_bytes(4, "big") + b"message"
        later(sent, port, data)
        sock = listener.accept(timeout=30)
        names = dict(sock=sock, json=json, out=out)
        exec(PROGRAMS[1], names)
        assert bytes(names["body"]) == b"message", names["body"]
        assert names["array"].shape == (3, 4)
        sock.close()
        # Sends from device memory.
        got = []
        def received():
            with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
                while part := client.recv(1 << 20):
                    got.append(len(part))
        thread = threading.Thread(target=received); thread.start()
        sock = listener.accept(timeout=30)
        names = dict(device=device, memory=memory, sock=sock)
        exec(PROGRAMS[2], names)
        sock.close(); thread.join(30)
        assert sum(got) == names["taken"] > 0
print("all ran")
""",
}


@pytest.mark.process
@pytest.mark.skipif(not COMPILED, reason="a slow NIC's process")
def test_the_fragments_on_sockets_run():
    programs = [block.text for block in blocks(ROOT / "docs/sockets.md") if block.kind == "python"]
    assert len(programs) == 4
    text = FRAGMENTS["docs/sockets.md"].format(programs=programs)
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=LIMIT)
    assert done.stdout == "all ran\n", done.stderr


@pytest.mark.process
@pytest.mark.skipif(not COMPILED, reason="a slow NIC's process")
def test_udp_on_sockets_runs():
    """On a TAP of a network namespace, where this kernel sends and is answered."""
    need(os.geteuid() == 0 and os.path.exists("/dev/net/tun"), "a TAP interface needs root and /dev/net/tun")
    program = [b.text for b in blocks(ROOT / "docs/sockets.md") if b.kind == "python"][3]
    text = f"""
import socket, threading, netmem
def talk():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(20)
        client.sendto(b"hello", ("10.20.0.2", 6000))
        answered.append(client.recv(100))
        client.sendto(b"more", ("10.20.0.2", 6000))
answered = []
with netmem.open_device(wire="tap:nm0") as device:
    thread = threading.Thread(target=talk); thread.start()
    exec({program!r})
    thread.join(20)
assert answered == [b"thanks"] and message.linear == b"hello", (answered, message)
print("all ran")
"""
    argv = ["unshare", "-n", sys.executable, "-c", text]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT)
    assert done.stdout == "all ran\n", done.stderr


@pytest.mark.skipif(not cuda.available(), reason="no NVIDIA GPU here")
def test_the_program_on_gpus_runs():
    (program,) = [block.text for block in blocks(ROOT / "docs/gpu.md") if block.kind == "python"]
    client = "nc -N 127.0.0.1 5001"
    text = f"(until head -c 1048576 /dev/zero | {client}; do sleep 0.2; done) & exec {sys.executable} -c "
    done = subprocess.run(
        ["bash", "-c", text + shlex.quote(program)], capture_output=True, text=True, timeout=LIMIT
    )
    assert "tensor(0." in done.stdout, done.stderr


def test_programs_that_run_elsewhere_do():
    """Those of the kernel's and of guests' pages run in tests/guest."""
    guest = "\n".join(path.read_text() for path in (ROOT / "tests" / "guest").glob("*.py"))
    for page in ("kernel.md", "guest.md"):
        assert f'"{page}"' in guest, f"no test in tests/guest runs what docs/{page} shows"


def test_the_program_on_vfio_says_what_is_missing_here():
    """As far as it comes without such a NIC; tests/guest/test_vfio.py has one, in a guest."""
    (program,) = [block.text for block in blocks(ROOT / "docs/vfio.md") if block.kind == "python"]
    with pytest.raises(NetmemError, match=r"0000:03:00\.0"):
        exec(program, {})


@pytest.mark.skipif(not COMPILED, reason="once is enough")
def test_the_site_builds_without_a_warning_and_has_every_public_name(tmp_path):
    argv = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-j", "2", "docs", str(tmp_path)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    from sphinx.util.inventory import InventoryFile

    with (tmp_path / "objects.inv").open("rb") as file:
        found = InventoryFile.load(file, "", os.path.join)
    names = {
        name.rpartition(".")[2] for kind, all_ in found.items() if kind.startswith("py:") for name in all_
    }
    import netmem

    public = set(netmem.__all__) - {"__version__"}
    assert public - names == set()
    pages = {path.stem for path in tmp_path.rglob("*.html")}
    assert {path.stem for path in (ROOT / "docs").rglob("*.md")} <= pages
