"""The igb driver: what each operation of netdev does to an 82576 (data sheet sections in brackets).

Header split is SRRCTL.DESCTYPE 5, "split always": the first bytes of every packet go to the header
buffer, whatever it is [7.1.10]. A packet that is not split (or fits the header buffer whole) leaves SPH
clear; what of it lies in the header buffer is linear. The other split modes would put whole packets into
unreadable memory. PSRTYPE stays at its default; frame check sequences are stripped (RCTL.SECRC), so that
no filler gets into device memory.
"""

from __future__ import annotations

import contextlib
import errno
import struct
from typing import ClassVar

from netmem.base.errors import DeviceGoneError, NetmemError
from netmem.base.ethtool import SteeringRule
from netmem.base.record import items
from netmem.drivers.base import TX_RING, WAIT_NS, RingDriver
from netmem.drivers.igb import kernels as k
from netmem.drivers.igb import regs as r
from netmem.hw.bus import PciBus
from netmem.hw.registers import RegisterFile
from netmem.netdev.driver import CoalesceParams, Netdev, RingParams
from netmem.netdev.ring import HEADER_BYTES, QueueCounters
from netmem.netdev.rx import DescriptorRing, RxRing

MIN_RING = 32  # the device takes 8, but QEMU's then delivers out of order, and pauses
FRAME_OVERHEAD = 14 + 4 + 4  # Ethernet header, VLAN tag, frame check sequence
INTERRUPT_US = 200  # least time between two interrupts, unless set
INTERRUPT_US_MAX = 4095
VECTOR_VALID = 0x80  # IVAR: the entry counts, vector 0


class IgbDriver(RingDriver):
    """netmem.netdev.driver.Driver for the 82576, on any PCI bus that has one.

    ``autoneg``: negotiate the link, which takes the PHY some time; without it 1000 Mbit/s full
    duplex is forced, and the link is there as soon as the cable is (``ethtool -s autoneg off``).
    """

    bus: PciBus
    desc_bytes: ClassVar[int] = r.DESC_BYTES
    rx_kernel = staticmethod(k.igb_rx)
    refill_kernel = staticmethod(k.igb_refill)
    pending_kernel = staticmethod(k.igb_pending)
    post_kernel = staticmethod(k.igb_post)
    xmit_kernel = staticmethod(k.igb_xmit)
    name: ClassVar[str] = "igb"
    device_ids: ClassVar[tuple[tuple[int, int], ...]] = ((0x8086, 0x10C9),)
    supported_ring_params: ClassVar[frozenset[str]] = frozenset(
        {"rx_pending", "rx_buf_len", "tcp_data_split"}
    )
    hw_features: ClassVar[frozenset[str]] = frozenset()
    hds_thresh_max: ClassVar[int] = 0  # the 82576 has no threshold
    max_mtu: ClassVar[int] = 9216
    max_rx_queues: int = r.QUEUES

    def __init__(self, bus: PciBus, *, autoneg: bool = True) -> None:
        if bus.device_id not in self.device_ids:
            raise NetmemError(errno.ENODEV, "the device {:04x}:{:04x} is no 82576".format(*bus.device_id))
        super().__init__(bus)
        self.autoneg = autoneg
        self._tx_ring = r.IgbTxRing()
        self.regs = RegisterFile(bus, r.REGISTERS)
        self._interval = INTERRUPT_US
        self._totals = dict.fromkeys(r.STATISTICS, 0)
        self._missed: dict[int, int] = {}
        self._reset()
        low, high = self.regs.read("RAL"), self.regs.read("RAH")
        self._mac = int.from_bytes(struct.pack("<IH", low, high & 0xFFFF), "big")
        self._filters = self._has_filters()

    # -- ndo_open, ndo_stop -------------------------------------------------------------------

    def _reset(self) -> None:
        """Software reset, with interrupts masked before and after [4.2.1.6, 4.5.3]."""
        self.regs.write("EIMC", 0xFFFFFFFF)
        self.regs.modify("CTRL", RST=1)
        self.bus.wait(lambda: not self.regs.get("CTRL", "RST"), "the end of its reset", WAIT_NS)
        self.regs.write("EIMC", 0xFFFFFFFF)
        self.regs.write("IMC", 0xFFFFFFFF)

    def open(self, dev: Netdev) -> None:
        """Bring the device up in the data sheet's order [4.5]; queues are started by netdev."""
        self._dev = dev
        self._reset()
        self._start_link()
        for i in range(self.regs.table["MTA"].count):
            self.regs.write("MTA", 0, i)
        self.regs.write("RXCSUM", PCSD=1, IPOFLD=1, TUOFLD=1)
        self.set_mtu(dev.mtu)
        self._start_interrupts()
        self._start_transmit(dev)
        # Packets are accepted once a queue is on [4.5.9].
        # All multicast: neighbour discovery asks for us at addresses of its own (RFC 4861, 7.2.1).
        self.regs.write("RCTL", RXEN=1, MPE=1, LPE=1, BAM=1, SECRC=1)
        self.regs.modify("CTRL_EXT", DRV_LOAD=1)

    def _start_link(self) -> None:
        """Set link up and have the PHY negotiate, or force the speed [3.5.7, 4.5.7].

        1000BASE-T as such has no forced mode; this one is for models and back-planes.
        """
        forced = int(not self.autoneg)
        self.regs.modify("CTRL", SLU=1, FD=1, SPEED=2, FRCSPD=forced, FRCDPX=forced)
        data = r.PHY_AUTONEG if self.autoneg else r.PHY_FORCED
        self.regs.write("MDIC", DATA=data, REGADD=r.PHY_CONTROL, PHYADD=r.PHY_ADDRESS, OP=r.MDIC_WRITE)
        self.bus.wait(lambda: bool(self.regs.get("MDIC", "R")), "its PHY", WAIT_NS)
        if self.regs.get("MDIC", "E"):
            raise NetmemError(errno.EIO, "the PHY of the 82576 does not answer")
        if not self.autoneg:
            self.bus.replug()

    def _start_interrupts(self) -> None:
        """One MSI-X vector for all queues, moderated, cleared by itself [7.3.3, 7.3.4]."""
        self.bus.setup_interrupt()
        self.regs.write("GPIE", MULTIPLE_MSIX=1, EIAME=1, PBA=1)
        every = VECTOR_VALID * 0x01010101
        for i in range(self.regs.table["IVAR"].count):
            self.regs.write("IVAR", every, i)
        self.regs.write("EITR", INTERVAL=self._interval)
        self.regs.write("EIAC", 1)
        self.regs.write("EIMS", 1)

    def _start_transmit(self, dev: Netdev) -> None:
        """Transmit queue 0, and the transmitter [4.5.10]."""
        self._place_ring("T", 0, self.open_tx(dev, self._tx_ring.ring))
        self.regs.write("TXDCTL", ENABLE=1)
        self.bus.wait(lambda: bool(self.regs.get("TXDCTL", "ENABLE")), "transmit queue 0", WAIT_NS)
        self.regs.write("TCTL", EN=1, PSP=1, CT=15, COLD=63)

    def _place_ring(self, way: str, queue: int, ring: DescriptorRing) -> None:
        self.regs.write(f"{way}DBAL", ring.io & 0xFFFFFFFF, queue)
        self.regs.write(f"{way}DBAH", ring.io >> 32, queue)
        self.regs.write(f"{way}DLEN", ring.size * r.DESC_BYTES, queue)
        self.regs.write(f"{way}DH", 0, queue)
        self.regs.write(f"{way}DT", 0, queue)

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self.regs.write("RCTL", 0)
            self.regs.write("EIMC", 0xFFFFFFFF)
            self._collect()
            self.regs.write("TXDCTL", ENABLE=0)
            self.regs.write("TCTL", 0)
        self.close_tx()

    def mac_address(self) -> int:
        """Receive address 0, which the device loads from its EEPROM [5.6.2], as a 48-bit number."""
        return self._mac

    def link_up(self) -> bool:
        """STATUS.LU: True when frames can come and go."""
        return bool(self.regs.get("STATUS", "LU"))

    def set_mtu(self, mtu: int) -> None:
        """Longest frame [8.10.17], which counts only with RCTL.LPE."""
        self.regs.write("RLPML", RLPML=mtu + FRAME_OVERHEAD)

    # -- NAPI and transmit --------------------------------------------------------------------

    def post(self, ring: RxRing, queue: int) -> None:
        """Tell the device by one tail write, when it is worth one.

        What it was not told of yet is less than a quarter of the ring, so it never waits for it.
        """
        if self.post_kernel(ring.at):
            tail = ring.record.tail = ring.record.next_to_use
            self.bus.post32(self.regs.offset("RDT", queue), tail & ring.record.mask)

    def tx_notify(self) -> None:
        tail = self._tx_ring.ring.next_to_use & (TX_RING - 1)
        self.bus.post32(self.regs.offset("TDT"), tail)

    # -- ethtool ------------------------------------------------------------------------------

    def get_coalesce(self) -> CoalesceParams:
        return CoalesceParams(rx_usecs=self._interval)

    def set_coalesce(self, params: CoalesceParams) -> None:
        """EITR [8.8.14]: EINVAL for more than its field holds, or for what it does not do by itself."""
        if params.use_adaptive_rx or params.rx_usecs > INTERRUPT_US_MAX:
            raise NetmemError(
                errno.EINVAL, f"rx-usecs: 0 to {INTERRUPT_US_MAX}, and nothing adaptive, is what an 82576 has"
            )
        self._interval = params.rx_usecs
        if self._dev is not None:
            self.regs.write("EITR", INTERVAL=self._interval)

    def set_ringparam(self, params: RingParams) -> None:
        """EINVAL for sizes that the rings cannot have [8.10.2, 8.10.7]."""
        if params.rx_pending & (params.rx_pending - 1) or not MIN_RING <= params.rx_pending <= 4096:
            text = f"rx {params.rx_pending}: a power of two from {MIN_RING} to 4096"
            raise NetmemError(errno.EINVAL, text)
        if params.rx_buf_len and (params.rx_buf_len % 1024 or not 1024 <= params.rx_buf_len <= 16384):
            raise NetmemError(errno.EINVAL, f"rx-buf-len {params.rx_buf_len}: a multiple of 1024 up to 16384")

    def set_features(self, features: frozenset[str]) -> None:
        """There is none to turn on."""

    def set_rxfh(self, key: bytes, indirection: list[int]) -> None:
        """Receive side scaling over TCP and IP addresses [7.1.2.8]; what it does not cover: queue 0."""
        for i, word in enumerate(struct.unpack("<10I", key)):
            self.regs.write("RSSRK", word, i)
        for i, word in enumerate(struct.unpack("<32I", bytes(indirection))):
            self.regs.write("RETA", word, i)
        self.regs.write("MRQC", ENABLE=r.MRQC_RSS, TCPIPV4=1, IPV4=1, TCPIPV6=1, IPV6=1)

    def _has_filters(self) -> bool:
        """True when the 5-tuple filters are there: an emulated 82576 may lack them."""
        self.regs.write("SAQF", 0x0A00020F)
        found = self.regs.read("SAQF") == 0x0A00020F
        self.regs.write("SAQF", 0)
        return found

    def set_rules(self, rules: list[SteeringRule]) -> None:
        """5-tuple filters [7.1.2.5, 8.11.1 to 8.11.4], of which a field of 0 is not compared.

        EOPNOTSUPP on a device without them, and for IPv6 addresses, which none compares; ENOSPC beyond
        eight; EINVAL for a queue above 7, which a filter cannot name.
        """
        if rules and not self._filters:
            raise NetmemError(
                errno.EOPNOTSUPP,
                "this 82576 has no 5-tuple filters (QEMU's lacks them): steer with the RSS indirection table",
            )
        if len(rules) > r.FILTERS:
            raise NetmemError(errno.ENOSPC, f"the 82576 has {r.FILTERS} 5-tuple filters")
        if any(max(rule.src_ip, rule.dst_ip) >> 32 not in (0, 0xFFFF) for rule in rules):
            raise NetmemError(errno.EOPNOTSUPP, "the 82576's 5-tuple filters compare IPv4 addresses only")
        if any(rule.queue > 7 for rule in rules):
            raise NetmemError(errno.EINVAL, "a 5-tuple filter of the 82576 leads to queues 0 to 7")
        for i in range(r.FILTERS if self._filters else 0):
            if i >= len(rules):
                self.regs.write("FTQF", 0, i)
                continue
            rule = rules[i]
            # Addresses and ports stand in the registers as they stand on the wire.
            self.regs.write("SAQF", int.from_bytes(struct.pack(">I", rule.src_ip & 0xFFFFFFFF), "little"), i)
            self.regs.write("DAQF", int.from_bytes(struct.pack(">I", rule.dst_ip & 0xFFFFFFFF), "little"), i)
            self.regs.write("SPQF", n=i, SPORT=_wire16(rule.src_port))
            self.regs.write("IMIR", n=i, PORT=_wire16(rule.dst_port), PORT_BP=int(not rule.dst_port))
            self.regs.write("IMIREXT", n=i, SIZE_BP=1, CTRL_BP=1)
            self.regs.write(
                "FTQF", n=i, PROTOCOL=rule.proto, QUEUE_ENABLE=1, VF_MASK=1, QUEUE=rule.queue,
                MASK_PROTOCOL=int(not rule.proto), MASK_SADDR=int(not rule.src_ip),
                MASK_DADDR=int(not rule.dst_ip), MASK_SPORT=int(not rule.src_port),
            )  # fmt: skip

    def _collect(self) -> None:
        """Add the statistics registers, which reading clears, to the totals [8.19]."""
        for name, registers in r.STATISTICS.items():
            for half, register in enumerate(registers):
                self._totals[name] += self.regs.read(register) << 32 * half

    def get_ethtool_stats(self) -> dict[str, int]:
        with contextlib.suppress(DeviceGoneError):
            self._collect()
        return dict(self._totals)

    def get_queue_stats(self, queue: int) -> dict[str, int]:
        ring = self._rx.get(queue)
        with contextlib.suppress(DeviceGoneError):
            self._missed[queue] = self._missed.get(queue, 0) + self.regs.read("RQDPC", queue)
        counters = items(ring.record.counters if ring else QueueCounters())
        names = {"packets": "rx_packets", "bytes": "rx_bytes", "starved": "rx_alloc_fail"}
        stats = {names.get(name, name): value for name, value in counters.items()}
        return {**stats, "rx_no_desc": self._missed.get(queue, 0)}

    # -- netdev_queue_mgmt_ops ----------------------------------------------------------------

    def queue_start(self, mem: RxRing, queue: int) -> None:
        """Program ring and buffer sizes, and enable the queue [4.5.9]."""
        mem.start(self._counters.get(queue))
        mem.record.tail = 0
        self._place_ring("R", queue, mem.desc)
        self.regs.write(
            "SRRCTL",
            n=queue,
            BSIZEPACKET=mem.record.buf_len // 1024,
            BSIZEHEADER=HEADER_BYTES // 64,
            DESCTYPE=r.DESCTYPE_SPLIT_ALWAYS if mem.split else r.DESCTYPE_ADV_ONE_BUFFER,
            DROP_EN=1,
        )
        self.regs.write("RXDCTL", n=queue, ENABLE=1)
        self.bus.wait(
            lambda: bool(self.regs.get("RXDCTL", "ENABLE", queue)), f"receive queue {queue} start", WAIT_NS
        )
        self.queue_started(mem, queue)

    def queue_stop(self, queue: int) -> RxRing:
        """Disable the queue and wait until the device let go of its ring [4.5.9.1]."""
        with contextlib.suppress(DeviceGoneError):
            self.regs.write("RXDCTL", n=queue, ENABLE=0)
            self.bus.wait(
                lambda: not self.regs.get("RXDCTL", "ENABLE", queue), f"receive queue {queue} stop", WAIT_NS
            )
        return self.queue_stopped(queue)


def _wire16(number: int) -> int:
    return int.from_bytes(number.to_bytes(2, "big"), "little")
