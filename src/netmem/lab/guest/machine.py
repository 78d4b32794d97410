"""A guest while it runs: QEMU and the device models' process, the guest's streams, its console, its end."""

from __future__ import annotations

import base64
import contextlib
import errno
import json
import os
import re
import secrets
import select
import shutil
import socket
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from netmem.base.errors import DeviceGoneError
from netmem.base.kernel_log import COMPLAINT
from netmem.base.text import printable
from netmem.hw.process import Child, Process, Watchdog, python_argv, undisturbed
from netmem.lab.guest.config import Done, GuestConfig, GuestError
from netmem.lab.guest.image import Images, Kernel, cpio
from netmem.lab.guest.out import unpack_out
from netmem.lab.guest.packages import Say
from netmem.lab.guest.qemu import GuestQemu

LOCAL6, REMOTE6 = "fd09::2", "fd09::1"
MACS = ("42010a090002", "42010a090001")
STREAMS = ("stdout", "stderr", "control", "out")
BOOT_S, END_S = 120.0, 10.0
CONSOLE_LINES, LAST_LINES, LONGEST = 4000, 8, 1000
MOST_OUT, MOST_SAID = 1 << 30, 64 << 20  # bytes of /out, and of what ``run`` keeps
CHUNK = 1 << 16


class _Stream:
    """One of the guest's output streams: data goes to ``sink`` up to the mark that ends a command's."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sink: Callable[[bytes], None] = lambda data: None
        self.mark = b""
        self.ended = True
        self._held = b""

    def begin(self, mark: bytes, sink: Callable[[bytes], None]) -> None:
        self.mark, self.sink, self.ended = mark, sink, False

    def take(self, data: bytes) -> None:
        """Hand data on, but for what may be the beginning of the mark."""
        data = self._held + data
        self._held = b""
        if self.ended:
            return
        at = data.find(self.mark)
        if at >= 0:
            self.ended = True
            self._give(data[:at])
            return
        keep = next((n for n in range(len(self.mark) - 1, 0, -1) if data.endswith(self.mark[:n])), 0)
        self._held = data[len(data) - keep :]
        self._give(data[: len(data) - keep])

    def _give(self, data: bytes) -> None:
        if data:
            self.sink(data)


class Guest:
    """A guest, started; ready for commands once ``wait_ready`` returns. A context manager.

    Errors: GuestError with the last lines of the guest's console when it does not come up, panics, hangs or
    loses its NIC; those of ``Process`` when QEMU or the models' process do not start.
    """

    def __init__(
        self, qemu: GuestQemu, kernel: Kernel, images: Images, config: GuestConfig, say: Say, *,
        root: Path, modules: Sequence[Path] = (), kvm: bool = False,
    ) -> None:  # fmt: skip
        self.config, self.kernel, self._say = config, kernel, say
        self.console: deque[str] = deque(maxlen=CONSOLE_LINES)
        self.complaints: list[str] = []
        self.failures: list[str] = []  # what the guest's own scripts said
        self.release = ""
        self._line = self._control = b""
        self._status: int | None = None
        self._ready = self._gone = False
        self.out = tempfile.TemporaryFile()
        self._ends = contextlib.ExitStack()
        self._ends.callback(self.out.close)
        try:
            self._start(qemu, images, root, list(modules), kvm)
        except BaseException:
            self.close()
            raise

    # -- start --------------------------------------------------------------------------------

    def _start(self, qemu: GuestQemu, images: Images, root: Path, modules: list[Path], kvm: bool) -> None:
        c = self.config
        names = [*STREAMS, "serial", *(["shell"] if c.shell else [])]
        ports = 2 if c.wire == "pair" else 1
        disks = [root, images.python(), *([c.share] if c.share else [])]
        with contextlib.ExitStack() as theirs:

            def pair() -> tuple[socket.socket, int]:
                ours, other = socket.socketpair()
                theirs.callback(other.close)
                return ours, other.fileno()

            # QEMU's vfio-user takes neither descriptors nor abstract names: a folder that only we can enter,
            # which the models' process takes away once the machine has connected.
            place = tempfile.mkdtemp(prefix="netmem-guest-")
            self._ends.callback(shutil.rmtree, place, ignore_errors=True)
            nics = {f"{place}/{number}": socket.socket(socket.AF_UNIX) for number in range(ports)}
            for name, listener in nics.items():
                theirs.callback(listener.close)
                listener.bind(name)
                listener.listen(1)
            self.model = self._start_model([sock.fileno() for sock in nics.values()])
            made = {name: pair() for name in names}
            for ours, _ in made.values():
                ours.setblocking(False)
                self._ends.callback(ours.close)
            initrd = os.memfd_create("initrd", os.MFD_CLOEXEC)
            theirs.callback(os.close, initrd)
            with os.fdopen(os.dup(initrd), "wb") as file:
                file.write(images.initramfs(self.kernel, modules))
                file.write(cpio({"netmem/config": self._settings(ports).encode()}))
            fds = {name: fd for name, (_, fd) in made.items()}
            self.model.wait_ready()
            argv = self._arguments(qemu, disks, initrd, list(nics), fds, kvm)
            with undisturbed():
                self.qemu = Process(argv, [initrd, *fds.values()])
                self._ends.callback(self.qemu.end, 0.0)
                self._ends.callback(Watchdog(self.qemu.pid).dismiss)
        self.pidfd = os.pidfd_open(self.qemu.pid)
        self._ends.callback(os.close, self.pidfd)
        self._socks = {name: sock for name, (sock, _) in made.items()}
        self.streams = {name: _Stream(self._socks[name]) for name in ("stdout", "stderr")}
        self._poll = select.poll()
        self._names = {sock.fileno(): name for name, sock in self._socks.items() if name != "shell"}
        for fd in (*self._names, self.pidfd, self.model.sock.fileno()):
            self._poll.register(fd, select.POLLIN)

    def _start_model(self, sockets: list[int]) -> Child:
        c = self.config
        config = {
            "sockets": sockets, "macs": MACS[: len(sockets)], "queues": c.queues, "mtu": c.mtu,
            "wire": c.wire, "tap": c.tap, "faults": c.faults, "seed": c.seed,
            "capture": c.capture, "gateway": c.remote4,
            "guest": c.local4,
        }  # fmt: skip
        fds = [*sockets, *(fd for fd in (c.tap, c.capture) if fd >= 0)]
        with undisturbed():
            model = Child(python_argv("netmem.lab.guest.model_main", "--config", json.dumps(config)), fds)
            self._ends.callback(model.close)
        return model

    def _settings(self, ports: int) -> str:
        c = self.config
        size = os.get_terminal_size(0) if c.shell and os.isatty(0) else os.terminal_size((80, 24))
        settings = {
            "PRINTK": 7 if c.verbose else 5, "PORTS": ports, "MTU": c.mtu, "LOCAL4": c.local4,
            "REMOTE4": c.remote4, "LOCAL6": LOCAL6, "REMOTE6": REMOTE6, "FOLDER": c.folder,
            "GATEWAY4": "" if c.wire == "pair" else c.remote4, "SHELL": int(c.shell), "OUT": int(c.out),
            "ROWS": size.lines, "COLUMNS": size.columns,
        }  # fmt: skip
        return "".join(f'NETMEM_{name}="{value}"\n' for name, value in settings.items())

    def _arguments(
        self, qemu: GuestQemu, disks: list[Path], initrd: int, nics: list[str], fds: dict[str, int], kvm: bool
    ) -> list[str]:
        c = self.config
        boot = [
            "console=ttyS0",
            "loglevel=7",
            "panic=-1",
            "oops=panic",
            "net.ifnames=0",
            "random.trust_cpu=on",
        ]
        boot += ["intel_iommu=on", "iommu.strict=1"] if c.iommu else []
        boot += ["swiotlb=force"] if c.bounce else []
        boot += ["nokaslr"] if c.gdb else []
        boot += [c.append] if c.append else []
        argv = [
            *qemu.argv, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", *qemu.sandbox,
            "-M", "q35,memory-backend=m0", "-m", f"{c.memory}M", "-smp", str(c.cpus),
            "-accel", "kvm" if kvm else "tcg,thread=multi", "-cpu", "host" if kvm else "max",
            "-object", f"memory-backend-memfd,id=m0,size={c.memory}M,share=on",
            "-kernel", str(self.kernel.image), "-initrd", f"/proc/self/fd/{initrd}",
            "-append", " ".join(boot), "-device", "virtio-serial-pci", "-device", "virtio-rng-pci",
        ]  # fmt: skip
        for number, disk in enumerate(disks):
            argv += ["-drive", f"if=none,id=d{number},file={_escape(disk)},format=raw,readonly=on"]
            argv += ["-device", f"virtio-blk-pci,drive=d{number}"]
        for name, fd in fds.items():
            argv += ["-chardev", f"socket,id=c_{name},fd={fd}"]
            if name == "serial":
                argv += ["-serial", f"chardev:c_{name}"]
            elif name == "shell":
                argv += ["-device", f"virtconsole,chardev=c_{name}"]
            else:
                argv += ["-device", f"virtserialport,chardev=c_{name},name={name}"]
        if c.iommu:
            argv += ["-device", "intel-iommu,caching-mode=on,intremap=off"]
        for number, name in enumerate(nics):
            bus = "pcie.0"
            if c.iommu and number:
                # The peer's NIC is beside the IOMMU: its mappings come and go with every frame it sends.
                bus = "peer"
                argv += ["-device", "pxb-pcie,id=beside,bus_nr=0x40,bypass_iommu=on"]
                argv += ["-device", "pcie-root-port,id=peer,bus=beside,chassis=9,slot=9"]
            argv += ["-device", json.dumps({
                "driver": "vfio-user-pci", "rombar": 0, "bus": bus, "addr": "0" if number and c.iommu else
                f"{0x10 + number:#x}", "socket": {"type": "unix", "path": name},
            })]  # fmt: skip
        for netdev in c.netdevs:
            argv += ["-netdev", netdev]
        for device in c.devices:
            argv += ["-device", device]
        if c.gdb:
            argv += ["-gdb", f"tcp:127.0.0.1:{c.gdb}"]
        return argv

    # -- the guest's streams ------------------------------------------------------------------

    def pump(self, deadline: float, until: Callable[[], bool], wait: float = 1.0) -> None:
        """Take what the guest says until something holds. GuestError when it ends or the time is over."""
        while not until():
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._error(errno.ETIMEDOUT, "the guest did not come to an end in time and was stopped")
            if self._round(min(left, wait)) and not until():
                raise self._how_it_ended()

    def _round(self, wait: float) -> bool:
        """Take what the guest says within some seconds; True when QEMU has ended, and everything is taken."""
        for fd, _ in self._poll.poll(wait * 1e3):
            if fd in self._names:
                self._take(self._names[fd])
            elif fd == self.pidfd:
                self._drain()
                return True
            else:
                self._model_said()
        return False

    def _drain(self) -> None:
        for name in self._names.values():
            while self._take(name):
                pass

    def _take(self, name: str) -> bool:
        try:
            data = self._socks[name].recv(CHUNK)
        except OSError:
            return False
        if not data:
            with contextlib.suppress(KeyError, OSError):
                self._poll.unregister(self._socks[name].fileno())
            return False
        if name == "serial":
            self._log(data)
        elif name == "control":
            self._control_said(data)
        elif name == "out":
            self._keep_out(data)
        else:
            self.streams[name].take(data)
        return True

    def _keep_out(self, data: bytes) -> None:
        if not self.config.out:
            return
        if self.out.tell() + len(data) > MOST_OUT:
            raise self._error(errno.EFBIG, f"the guest left more than {MOST_OUT >> 20} MiB in /out")
        self.out.write(data)

    def _log(self, data: bytes) -> None:
        *lines, self._line = (self._line + data).split(b"\n")
        self._line = self._line[-LONGEST:]
        for raw in lines:
            line = printable(raw[:LONGEST].decode(errors="replace").rstrip("\r"))
            self.console.append(line)
            if COMPLAINT.search(line) and len(self.complaints) < 64:
                self.complaints.append(re.sub(r"^\[ *[\d.]+\](\[ *\w+\])? *", "", line))
            if self.config.verbose:
                self._say(line)

    def _control_said(self, data: bytes) -> None:
        *lines, self._control = (self._control + data).split(b"\n")
        self._control = self._control[-LONGEST:]
        for raw in lines:
            word, _, rest = raw[:LONGEST].decode(errors="replace").partition(" ")
            rest = printable(rest)
            if word == "up":
                self.release = rest
            elif word == "ready":
                self._ready = True
            elif word == "exit":
                self._status = int(rest) if re.fullmatch("[0-9]{1,3}", rest) else 255
            elif word == "gone":
                self._gone = True
            elif word == "fail" and len(self.failures) < 64:
                self.failures.append(rest)

    def _model_said(self) -> None:
        try:
            data = self.model.sock.recv(CHUNK, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:  # nobody has asked for anything
            self.failures.append(printable(str(json.loads(data).get("text", ""))))
        elif not select.select([self.pidfd], [], [], 2.0)[0]:  # QEMU's end is also its end, and comes first
            raise self._error(
                errno.ENODEV, f"the NIC's process (pid {self.model.pid}) {self.model.how_it_ended()}"
            )

    def _how_it_ended(self) -> GuestError:
        panic = next(
            (line for line in self.complaints if "panic" in line or "BUG" in line or "Oops" in line), ""
        )
        if panic:
            return self._error(errno.EIO, f"the guest's kernel died: {panic}")
        if self.qemu.has_ended() and not self.console:
            return self._error(errno.EIO, f"QEMU (pid {self.qemu.pid}) {self.qemu.how_it_ended()}")
        if not self._ready:
            said = next((line for line in reversed(self.console) if "netmem-guest:" in line), "")
            why = said.partition("netmem-guest: ")[2] or "see its console"
            return self._error(errno.EIO, f"the guest did not come up: {why}")
        return self._error(errno.EIO, f"the guest ended by itself: QEMU {self.qemu.how_it_ended()}")

    def _error(self, code: int, text: str) -> GuestError:
        return GuestError(code, text, list(self.console)[-LAST_LINES:])

    # -- commands -----------------------------------------------------------------------------

    def wait_ready(self, timeout: float = BOOT_S) -> None:
        """Wait until the guest takes commands."""
        self.pump(time.monotonic() + timeout, lambda: self._ready)
        if self.failures:
            other = "Invalid module format" in self.failures[0]
            cure = ": it is of another kernel (build-module and guests have --kernel)" if other else ""
            raise self._error(errno.ENODEV, self.failures[0] + cure)

    def start(self, command: str, stdout: Callable[[bytes], None], stderr: Callable[[bytes], None]) -> None:
        """Have the guest's bash run a command line; ``finish`` waits for it."""
        mark = secrets.token_hex(16)
        self._status = None
        self.streams["stdout"].begin(b"\0" + mark.encode() + b"\n", stdout)
        self.streams["stderr"].begin(b"\0" + mark.encode() + b"\n", stderr)
        self._tell(f"run {mark} {base64.b64encode(command.encode()).decode()}\n")

    def _tell(self, text: str) -> None:
        sock = self._socks["control"]
        sock.setblocking(True)
        try:
            sock.settimeout(10.0)
            sock.sendall(text.encode())
        except OSError:
            raise self._error(errno.EIO, "the guest takes no commands any more") from None
        finally:
            sock.setblocking(False)

    def finish(self, timeout: float) -> int:
        """Wait for the command; its exit status."""
        ended = self.streams.values()
        self.pump(
            time.monotonic() + timeout,
            lambda: self._status is not None and all(stream.ended for stream in ended),
        )
        assert self._status is not None
        return self._status

    def run(self, command: str, timeout: float = 60.0) -> Done:
        """Run a command line and keep what it says."""
        out, err = bytearray(), bytearray()

        def kept(buffer: bytearray) -> Callable[[bytes], None]:
            def keep(data: bytes) -> None:
                if len(buffer) + len(data) > MOST_SAID:
                    raise self._error(errno.EFBIG, f"a command said more than {MOST_SAID >> 20} MiB")
                buffer.extend(data)

            return keep

        self.start(command, kept(out), kept(err))
        return Done(self.finish(timeout), bytes(out), bytes(err))

    def end(self) -> None:
        """Have the guest hand over /out and switch itself off."""
        self._tell("end\n")
        self.pump(time.monotonic() + 60.0, lambda: self._gone)
        with contextlib.suppress(GuestError):
            self.pump(time.monotonic() + END_S, self.qemu.has_ended)
        self._drain()

    def terminal(self) -> socket.socket:
        """The interactive shell's console, of a guest that has one."""
        return self._socks["shell"]

    def status(self) -> int | None:
        """The exit status of the last command or of the shell, None while it runs."""
        return self._status

    def look(self) -> None:
        """Take what the guest has said by now, without waiting. GuestError when it has ended."""
        if self._round(0.0) and self._status is None:
            raise self._how_it_ended()

    def statistics(self) -> list[dict[str, Any]]:
        """What the ports counted."""
        found: list[dict[str, Any]] = self.model.call({"op": "statistics"})
        return found

    def dma_faults(self) -> list[str]:
        """Accesses to memory that the driver had not mapped, in words."""
        with contextlib.suppress(DeviceGoneError):
            return [
                f"port {i}: {text}" for i, one in enumerate(self.statistics()) for text in one["dma_faults"]
            ]
        return []

    def fault(self, name: str, value: float, port: int = 0) -> None:
        """Change one of GveFaults' chances, or of the wire's (``hw.faults.Faults``). EINVAL."""
        self.model.call({"op": "fault", "name": name, "value": value, "nic": port})

    def fail(self, command: str, status: str = "ERROR_ABORTED", port: int = 0) -> None:
        """Have the driver's next admin command of a kind fail. EINVAL."""
        self.model.call({"op": "fail", "command": command, "status": status, "nic": port})

    def link(self, up: bool, port: int = 0) -> None:
        """Plug a port's cable in or out."""
        self.model.call({"op": "link", "up": up, "nic": port})

    def reset(self, port: int = 0) -> None:
        """Have a port ask its driver for a reset."""
        self.model.call({"op": "reset", "nic": port})

    def forward(self, address: str, port: int, guest_port: int) -> int:
        """Have this host's port (0: any) lead to the guest's, on the user wire. EADDRINUSE and the like."""
        return int(self.model.call(
            {"op": "forward", "address": address, "port": port, "guest_port": guest_port}
        ))  # fmt: skip

    def unpack_out(self, folder: Path) -> int:
        """What the guest left in /out, below ``folder``; how many files. EINVAL for what is no archive."""
        self.out.seek(0)
        return unpack_out(self.out, folder, self._say)

    def close(self) -> None:
        """End everything at once."""
        self._ends.close()

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _escape(path: Path) -> str:
    return str(path).replace(",", ",,")
