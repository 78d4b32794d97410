"""A device of the running kernel, opened as one of ours is: set up, bind memory, steer, listen, connect."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable, Sequence
from typing import TypeVar

from netmem.base.errors import NetmemError
from netmem.base.ethtool import SteeringRule
from netmem.kernel.devmem import KernelListener, KernelSocket
from netmem.kernel.gather import Memory
from netmem.kernel.netdev_family import NetdevFamily
from netmem.kernel.settings import KernelEthtool
from netmem.kernel.zcrx import Zcrx, ZcrxListener

PREFIX = "kernel:"
T = TypeVar("T")


class KernelBinding:
    """Memory bound to ``queues``, or to send from; ``id`` is its dmabuf_id. It ends with ``close``."""

    def __init__(self, family: NetdevFamily, number: int, queues: Sequence[int], size: int) -> None:
        self._family, self.id, self.queues, self.size = family, number, list(queues), size

    def close(self) -> None:
        """Unbind: the queues go back to ordinary pages, and tokens that are out stay good."""
        self._family.close()

    def __enter__(self) -> KernelBinding:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class KernelDevice:
    """Interface ``name`` of this network namespace. What is set through ``ethtool`` is undone at the end.

    ``undone``: what a process that was killed had left set, and this call has undone. Errors: ENODEV;
    EOPNOTSUPP where the kernel lacks the netlink families.
    """

    def __init__(self, name: str) -> None:
        self.name, self.ifindex = name, self.index_of(name)
        NetdevFamily().close()  # the kernel has it, or this says so before anything is set
        self.ethtool = KernelEthtool(name, self.ifindex)
        self.undone = self.ethtool.undone
        self._bindings: list[KernelBinding] = []
        self._zcrx: list[Zcrx] = []
        self._memories: dict[int, Memory] = {}  # by dmabuf_id: sockets may have payload in it after unbinding

    @staticmethod
    def index_of(name: str) -> int:
        """The index of an interface of this network namespace. ENODEV says which there are."""
        try:
            return socket.if_nametoindex(name)
        except OSError:
            have = ", ".join(one for _, one in socket.if_nameindex())
            text = f"there is no interface {name!r} here; there are {have}"
            raise NetmemError(errno.ENODEV, text) from None

    def queues(self) -> list[int]:
        """Its receive queues."""
        with NetdevFamily() as family:
            found = family.queue_get()
        return sorted(one["id"] for one in found if one["ifindex"] == self.ifindex and one["type"] == 0)

    def bind_rx(self, queues: Sequence[int], memory: Memory, *, rx_page_size: int = 0) -> KernelBinding:
        """Give receive queues a dma-buf for payload (netlink bind-rx). ``rx_page_size`` 0: the kernel's.

        What must be set first: tcp-data-split on, hds-thresh 0. Errors: as ``netmem.kernel.rules`` has them,
        with the rule that refuses, and its cure, as far as it can be told.
        """
        with contextlib.ExitStack() as undo:
            family = undo.enter_context(NetdevFamily())
            try:
                number = self._insist(lambda: family.bind_rx(self.ifindex, queues, memory.fd, rx_page_size))
            except NetmemError as error:
                raise self._explained(error, queues, rx_page_size) from None
            undo.pop_all()
        self._memories[number] = memory
        return self._bound(KernelBinding(family, number, queues, memory.size))

    def _insist(self, bind: Callable[[], T]) -> T:
        """Bind, and once more where the kernel has forgotten that split was asked for."""
        try:
            return bind()
        except NetmemError as error:
            if error.errno != errno.EINVAL or not self.ethtool.ask_for_split_again():
                raise
        return bind()

    def _explained(self, error: NetmemError, queues: Sequence[int], rx_page_size: int = 0) -> NetmemError:
        """The kernel's refusal, with the rule behind it."""
        from netmem.kernel.explain import explain
        from netmem.kernel.rules import Ask
        from netmem.kernel.state import device_state, kernel_state

        with contextlib.suppress(OSError):
            kernel = kernel_state()
            device = device_state(self.name, kernel)
            for queue in queues:
                found = explain(Ask(kernel, device, queue, rx_page_size)).refused
                if found is not None and found.rule.errno == error.errno:
                    rule = f"refused by the rule '{found.rule.text}' ({found.why})"
                    cure = f": {found.cure}" if found.cure else ""
                    return NetmemError(error.errno, f"{self.name}, queue {queue}: {rule}{cure}")
        return error

    def bind_zcrx(self, queue: int, memory: Memory) -> Zcrx:
        """Give a receive queue a dma-buf for io_uring's zero-copy receive, from this thread.

        ``listen`` hands out sockets of it from then on. Errors: as ``bind_rx``.
        """
        try:
            zcrx = self._insist(lambda: Zcrx(self.ifindex, queue, memory))
        except NetmemError as error:
            raise self._explained(error, [queue]) from None
        self._zcrx.append(zcrx)
        return zcrx

    def bind_tx(self, memory: Memory) -> KernelBinding:
        """Let sockets send straight from a dma-buf by this device (netlink bind-tx). EOPNOTSUPP."""
        with contextlib.ExitStack() as undo:
            family = undo.enter_context(NetdevFamily())
            number = family.bind_tx(self.ifindex, memory.fd)
            undo.pop_all()
        return self._bound(KernelBinding(family, number, (), memory.size))

    def _bound(self, binding: KernelBinding) -> KernelBinding:
        self._bindings.append(binding)
        return binding

    def isolate(self, queues: Sequence[int]) -> None:
        """Keep flows that no rule leads elsewhere away from queues (RSS). EBUSY when none would be left."""
        rest = [queue for queue in self.queues() if queue not in queues]
        if not rest:
            cure = f"ethtool -L {self.name} rx {len(queues) + 1}"
            raise NetmemError(errno.EBUSY, f"{self.name} has no other queues than {list(queues)}: {cure}")
        self.ethtool.set_rxfh_indir(rest)

    def steer(self, port: int, queue: int, *, proto: int = 6) -> int:
        """Send TCP (``proto`` 17: UDP) to local ``port`` to a receive queue; the rule's location.

        The feature ntuple-filters is turned on where it is off. EOPNOTSUPP where the driver has no rules.
        """
        self.ethtool.set_features(ntuple=True)
        return self.ethtool.add_rule(SteeringRule(queue=queue, dst_port=port, proto=proto))

    def listen(self, port: int, *, backlog: int = 128) -> KernelListener:
        """A listening socket for connections that come by this device."""
        if self._zcrx:
            return ZcrxListener(self._zcrx[-1], port, backlog=backlog, device=self.name)
        return KernelListener(port, backlog=backlog, device=self.name, memories=self._memories)

    def connect(self, host: str, port: int, *, timeout: float | None = 30.0) -> KernelSocket:
        """A connection by this device. ETIMEDOUT, ECONNREFUSED and the like."""
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self.name.encode())
            sock.settimeout(timeout)
            sock.connect((host, port))
        except OSError as error:
            sock.close()
            code = errno.ETIMEDOUT if isinstance(error, TimeoutError) else error.errno or errno.EIO
            text = f"cannot connect to {host}:{port} by {self.name}: {error.strerror or error}"
            raise NetmemError(code, text) from None
        return KernelSocket(sock, (host, port), memories=self._memories)

    def close(self) -> None:
        """Unbind all memory, then undo all settings; an error names what could not be undone."""
        with contextlib.ExitStack() as ends:  # each of them, whatever becomes of the others
            ends.callback(self.ethtool.close)
            for zcrx in self._zcrx:
                ends.callback(zcrx.close)
            for binding in self._bindings:
                ends.callback(binding.close)
            self._bindings.clear()
            self._zcrx.clear()

    def __enter__(self) -> KernelDevice:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
