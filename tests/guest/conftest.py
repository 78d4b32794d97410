"""A guest for a whole file of tests; what is missing is fetched. In CI everything must be there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest

from netmem.lab.guest.config import GuestConfig
from netmem.lab.guest.machine import Guest
from netmem.lab.guest.prepare import Prepared, build_module, driver_source, prepare
from netmem.lab.guest.sources import FOLDER

HW = f"{FOLDER}/drivers/net/hw"


def say(text: str) -> None:
    print(text, flush=True)


@pytest.fixture(scope="session")
def prepared() -> Prepared:
    """Debian's newest kernel, with selftests; another with NETMEM_GUEST_KERNEL."""
    return prepare(say, kernel=os.environ.get("NETMEM_GUEST_KERNEL", ""), tests=True)


class Lab:
    """A guest whose complaints and DMA faults are looked at after every test."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest

    def run(self, command: str, timeout: float = 120.0) -> str:
        """Run a command that must succeed; what it said."""
        done = self.guest.run(f"PATH={HW}:$PATH\n{command}", timeout)
        assert done.status == 0, f"{command}\n{done.text}\n{done.stderr.decode(errors='replace')}"
        return done.text

    def clean(self) -> None:
        """Nothing was complained of."""
        assert self.guest.complaints == []
        assert self.guest.dma_faults() == []


def boot(prepared: Prepared, config: GuestConfig, **more: object) -> Iterator[Lab]:
    with prepared.start(config, **more) as guest:  # type: ignore[arg-type]
        guest.wait_ready()
        yield Lab(guest)
        guest.end()


@pytest.fixture(scope="module")
def machine(prepared: Prepared) -> Iterator[Lab]:
    yield from boot(prepared, GuestConfig())


@pytest.fixture
def lab(machine: Lab) -> Iterator[Lab]:
    """The file's guest, good before and after."""
    machine.guest.complaints.clear()
    yield machine
    machine.clean()


class Driver:
    """A copy of gve's source."""

    def __init__(self, folder) -> None:
        self.folder = folder
        driver_source(say, "", folder)

    def insert(self, file: str, after: str, text: str) -> Driver:
        """Put a line after the one place that matches."""
        path = self.folder / file
        source = path.read_text()
        assert len(re.findall(after, source)) == 1, after
        path.write_text(re.sub(after, lambda match: match[0] + text, source))
        return self

    def replace(self, file: str, what: str, text: str) -> Driver:
        """Replace the one place that matches."""
        path = self.folder / file
        source, count = re.subn(what, text, path.read_text())
        assert count == 1, what
        path.write_text(source)
        return self

    def boot(self, prepared, config: GuestConfig) -> Iterator[Lab]:
        """A guest with this driver."""
        yield from boot(prepared, config, modules=build_module(say, "", self.folder))


@pytest.fixture
def driver(tmp_path):
    return Driver(tmp_path / "gve")
