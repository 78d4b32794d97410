"""A machine with a NIC and no guest: q35, a CPU that halts at once, and slots for memory.

Each DMA mapping is an ivshmem-plain function, hot-plugged into the slot of a PCIe root port: its BAR 2 is
the mapped range of a file, at an address that the NIC can reach as a bus master. Unplugging it revokes
the mapping. Plugging takes some 4 ms, unplugging 1 ms.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
import threading
from collections.abc import Sequence

from netmem.base.errors import DeviceGoneError, NetmemError
from netmem.base.memfd import memfd
from netmem.hw.pci import BRIDGE_WINDOW, PciFunction, RootPort
from netmem.hw.process import Process, Watchdog
from netmem.hw.qemu import doorbell
from netmem.hw.qemu.find import Qemu
from netmem.hw.qemu.qmp import Qmp
from netmem.hw.qemu.qtest import TIMEOUT_S, LineSocket, QTest

NIC_SLOT, DOORBELL_SLOT, FIRST_PORT_SLOT = 4, 5, 6
PORTS = 96
NIC_BAR0, NIC_BAR3, DOORBELL_BAR0 = 0xE000_0000, 0xE010_0000, 0xE020_0000
MEMORY_BASE = 64 << 30
MEMORY_END = 1 << 40  # what the CPU model can address
FIRMWARE = 1 << 16
RESET_VECTOR = 0xFFF0
HALT = bytes.fromhex("fa f4 eb fd")  # cli; hlt; jmp back to hlt


class _Slot:
    """A root port with something plugged in."""

    def __init__(self, port: RootPort, name: str, function: PciFunction, size: int) -> None:
        self.port, self.name, self.function, self.size = port, name, function, size


class Machine:
    """QEMU, started. ``nic`` is the NIC's PCI function, ``irq_fd`` gets its interrupts.

    ``device``: the NIC's -device argument without netdev and address; ``netdev``: its -netdev
    argument without id; ``fds``: descriptors that it names. Errors: DeviceGoneError with QEMU's
    last words when it does not start.
    """

    def __init__(self, qemu: Qemu, device: str, netdev: str, fds: Sequence[int], irq_fd: int) -> None:
        self._closed = False
        self._lock = threading.Lock()
        self._slots: dict[int, list[_Slot]] = {}
        self._free_addresses: dict[int, list[int]] = {}
        self._next_address = MEMORY_BASE
        self._names = itertools.count(1)
        self._ends = contextlib.ExitStack()  # everything that ``close`` ends, last made first
        try:
            self._start(qemu, device, netdev, fds, irq_fd)
            self._enumerate()
        except BaseException:
            self.close()
            raise

    def _start(self, qemu: Qemu, device: str, netdev: str, fds: Sequence[int], irq_fd: int) -> None:
        with contextlib.ExitStack() as theirs:
            pairs = [socket.socketpair() for _ in range(3)]
            for ours, other in pairs:
                self._ends.callback(ours.close)
                theirs.callback(other.close)
            firmware = _firmware()
            theirs.callback(os.close, firmware)
            doorbell.serve(pairs[2][0], irq_fd)
            qt, qm, bell = (other.fileno() for _, other in pairs)
            argv = [
                *(qemu.path, "-M", "q35", "-accel", "tcg", "-m", "2M", "-display", "none"),
                *qemu.sandbox,
                *("-nodefaults", "-no-user-config", "-bios", f"/proc/self/fd/{firmware}"),
                # Without ACPI hot-plug the ports' own slots do it, which configuration space can drive.
                *("-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"),
                *("-chardev", f"socket,id=qt,fd={qt}", "-qtest", "chardev:qt", "-qtest-log", "none"),
                *("-chardev", f"socket,id=qm,fd={qm}", "-mon", "chardev=qm,mode=control"),
                *("-chardev", f"socket,id=bell,fd={bell}", "-device"),
                f"ivshmem-doorbell,chardev=bell,vectors=1,ioeventfd=off,addr={DOORBELL_SLOT:#x}",
                *("-netdev", f"{netdev},id=n0", "-device", f"{device},netdev=n0,addr={NIC_SLOT:#x}"),
                *itertools.chain.from_iterable(_port_arguments(i) for i in range(PORTS)),
            ]
            self.process = Process(argv, [qt, qm, bell, firmware, *fds])
            self._ends.callback(self.process.end, 0.0)
        self.pidfd = os.pidfd_open(self.process.pid)
        self._ends.callback(os.close, self.pidfd)
        self._ends.callback(Watchdog(self.process.pid).dismiss)
        self.qtest = QTest(LineSocket(pairs[0][0], self.gone, self.process.at_work))
        self.qmp = Qmp(LineSocket(pairs[1][0], self.gone, self.process.at_work))

    def _enumerate(self) -> None:
        """Give the functions that are there from the start their addresses."""
        self._ports = [
            RootPort(self.qtest, FIRST_PORT_SLOT + i // 8, i % 8, secondary=i + 1) for i in range(PORTS)
        ]
        self.nic = PciFunction(self.qtest, 0, NIC_SLOT)
        self.nic.assign_bar(0, NIC_BAR0)
        self.nic.assign_bar(3, NIC_BAR3)
        self.nic.enable(master=True)
        bell = PciFunction(self.qtest, 0, DOORBELL_SLOT)
        bell.assign_bar(0, DOORBELL_BAR0)
        bell.enable()

    def gone(self, what: str = "") -> DeviceGoneError:
        """The error that says how QEMU ended; ``what`` it did not answer to, for which it is killed."""
        if what:
            self.process.kill()
            return DeviceGoneError(
                f"QEMU (pid {self.process.pid}) did not answer to {what!r}, did nothing for {TIMEOUT_S:g} s "
                "and was killed"
            )
        return DeviceGoneError(f"QEMU (pid {self.process.pid}) {self.process.how_it_ended()}")

    def is_alive(self) -> bool:
        """False once QEMU ended."""
        return not self._closed and not self.process.has_ended()

    # -- memory as PCI functions --------------------------------------------------------------

    def plug(self, fd: int, offset: int, length: int) -> int:
        """Plug in ``length`` bytes of ``fd`` as BARs one behind the other; the first's address.

        EINVAL for a length that BARs cannot have: a power of two, or a multiple of 1 MiB.
        ENOSPC when no slot or no address is left.
        """
        pieces = [1 << bit for bit in reversed(range(length.bit_length())) if length >> bit & 1]
        if any(piece < BRIDGE_WINDOW for piece in pieces) and len(pieces) > 1:
            raise NetmemError(
                errno.EINVAL,
                f"memory of {length} bytes does not fit PCI BARs: a power of two or a multiple of 1 MiB does",
            )
        with self._lock:
            if len(pieces) > len(self._ports):
                raise NetmemError(errno.ENOSPC, f"all {PORTS} slots of the machine hold memory already")
            base = at = self._address(length)
            slots: list[_Slot] = []
            try:
                for piece in pieces:
                    slots.append(self._plug_one(fd, offset + at - base, piece, at))
                    at += piece
            except BaseException:
                with contextlib.suppress(OSError):
                    self._unplug(slots)
                self._give_back(base, length)
                raise
            self._slots[base] = slots
            return base

    def _address(self, length: int) -> int:
        size = _room(length)
        if self._free_addresses.get(size):
            return self._free_addresses[size].pop()
        base = -(-self._next_address // size) * size
        if base + size > MEMORY_END:
            raise NetmemError(errno.ENOSPC, f"no I/O addresses are left for {length} bytes")
        self._next_address = base + size
        return base

    def _give_back(self, address: int, length: int) -> None:
        self._free_addresses.setdefault(_room(length), []).append(address)

    def _plug_one(self, fd: int, offset: int, size: int, address: int) -> _Slot:
        name = str(next(self._names))
        with contextlib.ExitStack() as undo:
            self.qmp(
                "object-add", qom_type="memory-backend-file", id=f"m{name}", size=size, share=True,
                mem_path=f"/proc/{os.getpid()}/fd/{fd}", offset=offset,
            )  # fmt: skip
            undo.callback(self.qmp, "object-del", id=f"m{name}")
            port = self._ports.pop()
            undo.callback(self._ports.append, port)
            self.qmp(
                "device_add",
                driver="ivshmem-plain",
                id=f"d{name}",
                memdev=f"m{name}",
                bus=f"rp{port.secondary - 1}",
            )
            undo.pop_all()
        slot = _Slot(port, name, PciFunction(self.qtest, port.secondary, 0), size)
        try:
            port.power_on(address, size)
            slot.function.assign_bar(2, address)
            slot.function.enable()
        except BaseException:
            with contextlib.suppress(OSError):
                self._unplug([slot])
            raise
        return slot

    def unplug(self, address: int) -> None:
        """Revoke what ``plug`` gave; the NIC cannot reach it any more when this returns."""
        with self._lock:
            slots = self._slots.pop(address)
            self._unplug(slots)
            self._give_back(address, sum(slot.size for slot in slots))

    def _unplug(self, slots: list[_Slot]) -> None:
        for slot in slots:
            slot.function.disable()
            self.qmp("device_del", id=f"d{slot.name}")
            slot.port.power_off()
            self.qmp("object-del", id=f"m{slot.name}")
            self._ports.append(slot.port)

    def function_at(self, address: int) -> PciFunction:
        """The PCI function whose BAR 2 starts at ``address``."""
        return self._slots[address][0].function

    def close(self) -> None:
        """End QEMU and close what belonged to it."""
        self._closed = True
        self._ends.close()


def _room(length: int) -> int:
    """Bytes of address space for a mapping: aligned to this, each of its BARs is aligned to itself."""
    return max(1 << (length - 1).bit_length(), BRIDGE_WINDOW)


def _firmware() -> int:
    """A memfd with 64 KiB whose reset vector halts the CPU."""
    fd = memfd("firmware", FIRMWARE)
    os.pwrite(fd, HALT, RESET_VECTOR)
    return fd


def _port_arguments(i: int) -> list[str]:
    slot, function = FIRST_PORT_SLOT + i // 8, i % 8
    more = ",multifunction=on" if function == 0 else ""
    return ["-device", f"pcie-root-port,id=rp{i},chassis=1,slot={i + 1},addr={slot:#x}.{function}{more}"]
