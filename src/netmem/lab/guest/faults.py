"""What goes wrong at a NIC, provoked one by one under a real driver, and what became of it.

Each scenario says what the kernel must survive; ``Unexpected`` says that it did not. Results are read as
those of selftests are: `netmem guest test faults`.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable

from netmem.base.text import printable
from netmem.lab.guest.config import Done
from netmem.lab.guest.machine import Guest
from netmem.lab.guest.scripts import program, script
from netmem.lab.guest.sources import POOLS

FLOW_S = 120.0
TORN_S = 20.0  # until a packet of several buffers comes
RELOAD = "rmmod gve && insmod /netmem/modules/gve.ko && . /netmem/config && . /netmem/nics"


class Unexpected(Exception):
    """A fault had another effect than it may have."""


class Steps:
    """What scenarios are made of."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest

    def run(self, command: str, timeout: float = 60.0) -> Done:
        """Run a command, however it ends."""
        return self.guest.run(command, timeout)

    def must(self, command: str, timeout: float = 60.0) -> str:
        """Run a command that has to succeed; what it said."""
        done = self.run(command, timeout)
        if done.status:
            raise Unexpected(f"{command.strip().splitlines()[0][:60]}: {done.last_words()}")
        return done.text

    def refused(self, command: str) -> str:
        """Run a command that has to fail; its last words."""
        done = self.run(command)
        if not done.status:
            raise Unexpected(f"{command.strip().splitlines()[0][:60]} went well")
        return done.last_words()

    def counter(self, name: str) -> int:
        """One of the driver's own counters (ethtool -S)."""
        found = re.search(rf"^ *{name}: ([0-9]{{1,19}})$", self.must("ethtool -S eth0"), re.MULTILINE)
        return int(found[1]) if found else 0

    def happened(self, name: str) -> int:
        """How often a fault of the device has happened."""
        return int(self.guest.statistics()[0]["counters"].get(f"fault_{name}", 0))

    def calm(self, name: str) -> None:
        """A fault of the device happens no more; nothing happens when the guest is gone."""
        with contextlib.suppress(OSError):
            self.guest.fault(name, 0.0)

    def flow(self, inject: Callable[[], None], *, source: str = "peer", megabytes: int = 60) -> float:
        """A TCP flow that must arrive whole, with ``inject`` called once it runs; its seconds."""
        said = bytearray()
        line = f"set -e -o pipefail\nFROM={source} MEGABYTES={megabytes}\n" + script("flow")
        begin, errors = time.monotonic(), bytearray()
        self.guest.start(line, said.extend, errors.extend)
        self.guest.pump(begin + FLOW_S, lambda: b"begin" in said or self.guest.status() is not None)
        inject()
        done = Done(self.guest.finish(FLOW_S), stderr=bytes(errors))
        if done.status:
            raise Unexpected(f"the flow broke: {done.last_words()}")
        return time.monotonic() - begin

    def wait(self, seconds: float) -> None:
        """Let the guest run on."""
        end = time.monotonic() + seconds
        self.guest.pump(end + 60, lambda: time.monotonic() >= end, wait=0.05)

    def ping(self) -> None:
        """The NIC works, or comes back in time."""
        self.must("for i in $(seq 40); do ping -c 1 -W 1 -q $REMOTE_V4 && exit 0; sleep 0.2; done; exit 1")


def _chance(name: str, value: float) -> Callable[[Steps], str]:
    """A flow both ways, with a fault of the device by chance."""

    def scenario(s: Steps) -> str:
        before = s.happened(name)
        try:
            for source in ("guest", "peer"):
                s.flow(lambda: s.guest.fault(name, value), source=source, megabytes=20)
        finally:
            s.calm(name)
        count = s.happened(name) - before
        if not count:
            raise Unexpected("the fault never happened")
        return f"{count} times; both flows arrived whole"

    return scenario


def link_down(s: Steps) -> str:
    """The cable is out for a second in the middle of a flow."""

    def inject() -> None:
        s.guest.link(False)
        s.wait(1.0)
        s.guest.link(True)

    seconds = s.flow(inject)
    return f"the flow stood still and arrived whole after {seconds:.1f} s"


def device_reset(s: Steps) -> str:
    """The device asks for a reset in the middle of a flow."""
    before = s.counter("reset_cnt")
    s.flow(s.guest.reset)
    s.ping()
    resets = s.counter("reset_cnt") - before
    if not resets:
        raise Unexpected("the driver did not reset the device")
    return f"the driver reset the device ({resets} time) and the flow arrived whole"


def reset_while_bound(s: Steps) -> str:
    """The device asks for a reset while a udmabuf is bound to a queue and receives."""
    said, errors = bytearray(), bytearray()
    s.guest.start(program("ncdevmem-receive"), said.extend, errors.extend)
    s.wait(2.5)
    s.guest.reset()
    status = s.guest.finish(FLOW_S)
    s.ping()
    if status == 0:
        return "the binding lived on: every byte arrived and was right"
    first = (errors.decode(errors="replace").strip().splitlines() or [f"status {status}"])[0]
    return f"the receiver failed ({printable(first)[:60]}), the NIC came back"


def completion_loss(s: Steps) -> str:
    """Transmit completions that never come."""
    before = s.counter("tx_timeouts")
    try:
        s.flow(lambda: s.guest.fault("completion_loss", 0.02), source="guest", megabytes=20)
    finally:
        s.calm("completion_loss")
    s.ping()
    lost = s.happened("completion_loss")
    if not lost:
        raise Unexpected("the fault never happened")
    timeouts = s.counter("tx_timeouts") - before
    s.must("ip link set eth0 down; ip link set eth0 up")
    s.ping()
    return f"{lost} lost; the flow arrived whole, {timeouts} transmit timeouts, down and up went well"


def unsplit_bound(s: Steps) -> str:
    """Frames that were not split come to a queue with unreadable memory: the driver must drop them."""
    return _bound(s, "unsplit", 0.02)


def overflow_bound(s: Steps) -> str:
    """Headers do not fit their buffer, on a queue with unreadable memory."""
    return _bound(s, "overflow", 0.02)


def _bound(s: Steps, name: str, value: float) -> str:
    before = s.happened(name)
    try:
        s.guest.fault(name, value)
        s.must(program("ncdevmem-receive"), FLOW_S)
    finally:
        s.calm(name)
    count = s.happened(name) - before
    if not count:
        raise Unexpected("the fault never happened")
    return f"{count} dropped by the driver, sent again by TCP; every byte was right, none linear"


def refuse_queue(s: Steps) -> str:
    """The device refuses to make a receive queue while the interface comes up."""
    s.must("ip link set eth0 down")
    s.guest.fail("CREATE_RX_QUEUE")
    said = s.refused("ip link set eth0 up")
    s.must("ip link set eth0 up")
    s.ping()
    return f"`ip link set up` failed ({said[:50]}), the next went well"


def refuse_rule(s: Steps) -> str:
    """The device refuses a flow rule."""
    s.must("ethtool -K eth0 ntuple on")
    s.guest.fail("CONFIGURE_FLOW_RULE", "ERROR_RESOURCE_EXHAUSTED")
    said = s.refused("ethtool -N eth0 flow-type tcp4 dst-port 9 action 1")
    s.must("ethtool -N eth0 flow-type tcp4 dst-port 9 action 1 loc 3 && ethtool -N eth0 delete 3")
    return f"ethtool failed ({said[:50]}), the next rule was taken"


def refuse_describe(s: Steps) -> str:
    """The device does not describe itself while the driver is loaded."""
    s.must("rmmod gve")
    s.guest.fail("DESCRIBE_DEVICE")
    s.must("insmod /netmem/modules/gve.ko")
    if not s.run("test -e /sys/class/net/eth1").status:
        raise Unexpected("the driver took a device that did not describe itself")
    s.must(RELOAD)
    s.ping()
    return "the driver refused the device; loaded again it works"


def reload(s: Steps) -> str:
    """The driver is unloaded and loaded again."""
    s.must(RELOAD)
    s.ping()
    return "it works as before"


def torn(s: Steps) -> str:
    """A queue stops within a packet, and the driver resets the device: all memory must come back."""
    before = s.happened("torn")
    s.must("ethtool -G eth0 tcp-data-split on")

    def inject() -> None:
        s.guest.fault("torn", 1.0)
        try:
            s.guest.pump(time.monotonic() + TORN_S, lambda: s.happened("torn") > before, wait=0.05)
        finally:
            s.calm("torn")
        s.guest.reset()

    s.flow(inject)
    if s.happened("torn") == before:
        raise Unexpected("the fault never happened")
    left = s.run(POOLS)
    if left.status:
        raise Unexpected(left.last_words())
    return "the driver reset the device, the flow arrived whole, no page pool stayed"


# What the kernel rightly says of a fault.
EXPECTED = {"transmit completions lost (2 %)": r"NETDEV WATCHDOG: "}
# What kernels are known to get wrong: words of the panic, or of Unexpected, and what is known of it. Such a
# guest is not used again.
FINDINGS = {
    "headers do not fit, queue bound (2 %)": (
        r"NULL pointer dereference",
        "Linux 7.3.4 panics: gve hands an address of NULL to eth_get_headlen for memory that it cannot read",
    ),
    "queue stopped in a packet": (
        r"^pool \d+ holds",
        "Linux 7.3.4 leaks: gve forgets a packet seen in part, with its buffers, when it resets a ring",
    ),
}
SCENARIOS: dict[str, Callable[[Steps], str]] = {
    "link down and up in a flow": link_down,
    "reset asked for by the device in a flow": device_reset,
    "reset while a udmabuf is bound": reset_while_bound,
    "transmit completions lost (2 %)": completion_loss,
    "transmit completions 50 ms late (5 %)": _chance("completion_late", 0.05),
    "frames not split (5 %)": _chance("unsplit", 0.05),
    "frames not split, queue bound (2 %)": unsplit_bound,
    "headers do not fit (5 %)": _chance("overflow", 0.05),
    "no buffer for a frame (1 %)": _chance("no_buffers", 0.01),
    "queue refused": refuse_queue,
    "flow rule refused": refuse_rule,
    "description refused": refuse_describe,
    "driver unloaded and loaded": reload,
    "headers do not fit, queue bound (2 %)": overflow_bound,
    "queue stopped in a packet": torn,
}
