"""A gve's admin queue: a table of commands (gve_adminq.h). What is not in it fails as unimplemented.

Nothing here depends on the order in which a driver's version happens to send them, only on what they need:
resources before queues, a queue before it is destroyed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import c_uint32
from typing import Any

from netmem.base.errors import NetmemError
from netmem.hw.gve import layout as ly
from netmem.hw.gve import regs
from netmem.hw.gve.port import Port
from netmem.hw.gve.rx import RxQueue
from netmem.hw.gve.setup import Setup
from netmem.hw.gve.steering import HASH_KEY_BYTES, LUT_ENTRIES, ptype_map
from netmem.hw.gve.tx import TxQueue
from netmem.hw.vfio_user.dma import DmaFault

Layout = type[ctypes.BigEndianStructure]
MAX_INNER = 4096  # bytes of an extended command
RULE_KINDS = tuple(ly.FlowType)


class CommandError(Exception):
    """A command that fails with ``status``."""

    def __init__(self, status: ly.Status, why: str) -> None:
        self.status = status
        super().__init__(why)


def _need(condition: bool, status: ly.Status, why: str) -> None:
    if not condition:
        raise CommandError(status, why)


class AdminQueue:
    """Commands of a port's driver; what they set up is in ``setup``.

    ``log`` has the last of them: (name, status, why).
    """

    def __init__(self, port: Port, setup: Setup) -> None:
        self._port, self._setup = port, setup
        self.log: list[tuple[str, int, str]] = []
        self._table: dict[int, tuple[Layout | None, Callable[[Any], None]]] = {
            ly.Opcode.DESCRIBE_DEVICE: (ly.DescribeDevice, self._describe_device),
            ly.Opcode.CONFIGURE_DEVICE_RESOURCES: (ly.ConfigureDeviceResources, self._configure),
            ly.Opcode.CREATE_TX_QUEUE: (ly.CreateTxQueue, self._create_tx_queue),
            ly.Opcode.CREATE_RX_QUEUE: (ly.CreateRxQueue, self._create_rx_queue),
            ly.Opcode.DESTROY_TX_QUEUE: (ly.DestroyQueue, self._destroy_tx_queue),
            ly.Opcode.DESTROY_RX_QUEUE: (ly.DestroyQueue, self._destroy_rx_queue),
            ly.Opcode.DECONFIGURE_DEVICE_RESOURCES: (None, self._deconfigure),
            ly.Opcode.CONFIGURE_RSS: (ly.ConfigureRss, self._configure_rss),
            ly.Opcode.SET_DRIVER_PARAMETER: (ly.SetDriverParameter, self._set_driver_parameter),
            ly.Opcode.REPORT_STATS: (ly.ReportStats, self._report_stats),
            ly.Opcode.REPORT_LINK_SPEED: (ly.ReportLinkSpeed, self._report_link_speed),
            ly.Opcode.GET_PTYPE_MAP: (ly.GetPtypeMap, self._get_ptype_map),
            ly.Opcode.VERIFY_DRIVER_COMPATIBILITY: (ly.VerifyDriverCompatibility, self._verify_driver),
            ly.Opcode.QUERY_FLOW_RULES: (ly.QueryFlowRules, self._query_flow_rules),
            ly.Opcode.QUERY_RSS: (ly.QueryRss, self._query_rss),
            ly.Opcode.EXTENDED_COMMAND: (ly.ExtendedCommand, self._extended),
        }
        self._extended_table: dict[int, tuple[Layout, Callable[[Any], None]]] = {
            ly.Opcode.CONFIGURE_FLOW_RULE: (ly.ConfigureFlowRule, self._configure_flow_rule),
        }

    def run(self, base: int, length: int, done: int, produced: int) -> int:
        """Run the commands between two counts of a queue of ``length`` bytes at ``base``; the new count."""
        entries = length // ly.COMMAND_BYTES
        if not base or not entries or entries & (entries - 1):
            return done
        for _ in range(min((produced - done) & 0xFFFFFFFF, entries)):
            at = base + ly.COMMAND_BYTES * (done % entries)
            try:
                data = self._port.dma.read(at, ly.COMMAND_BYTES)
                status = self.command(data)
                self._port.dma.write(at + ly.CommandHead.status.offset, status.to_bytes(4, "big"))
            except DmaFault as fault:
                self._port.dma_fault(fault, "admin queue")
            done = (done + 1) & 0xFFFFFFFF
        return done

    def command(self, data: bytes) -> int:
        """Run one command; its status."""
        head = ly.CommandHead.from_buffer_copy(data)
        name = _name(head.opcode)
        forced = self._port.faults.commands.pop(head.opcode, None)
        status, why = ly.Status.PASSED, ""
        try:
            if forced is not None:
                raise CommandError(ly.Status(forced), "as asked")
            known = self._table.get(head.opcode)
            if known is None:
                raise CommandError(ly.Status.ERROR_UNIMPLEMENTED, "unknown")
            layout, handler = known
            handler(layout.from_buffer_copy(data, ctypes.sizeof(ly.CommandHead)) if layout else None)
        except CommandError as error:
            status, why = error.status, str(error)
        except DmaFault as fault:
            self._port.dma_fault(fault, f"admin command {name}")
            status, why = ly.Status.ERROR_INVALID_ARGUMENT, str(fault)
        except NetmemError as error:
            status, why = ly.Status.ERROR_INTERNAL_ERROR, str(error)
        self.log.append((name, int(status), why))
        del self.log[:-64]
        self._port.counters["admin_commands"] += 1
        self._port.counters["admin_errors"] += status != ly.Status.PASSED
        return int(status)

    # -- the device and its resources ---------------------------------------------------------

    def _describe_device(self, command: ly.DescribeDevice) -> None:
        c, every = self._port.config, 0xFFFFFFFF
        options: list[tuple[ly.OptionId, ctypes.BigEndianStructure]] = [
            (ly.OptionId.DQO_RDA, ly.OptionDqoRda(every, 0)),
            (ly.OptionId.JUMBO_FRAMES, ly.OptionJumboFrames(ly.Feature.JUMBO_FRAMES, c.max_mtu)),
            (
                ly.OptionId.BUFFER_SIZES,
                ly.OptionBufferSizes(ly.Feature.BUFFER_SIZES, c.packet_buffer, c.header_buffer),
            ),
            (
                ly.OptionId.MODIFY_RING,
                ly.OptionModifyRing(ly.Feature.MODIFY_RING, c.max_ring, c.max_ring, c.min_ring, c.min_ring),
            ),
            (ly.OptionId.FLOW_STEERING, ly.OptionFlowSteering(ly.Feature.FLOW_STEERING, 0, c.max_rules)),
            (ly.OptionId.RSS_CONFIG, ly.OptionRssConfig(ly.Feature.RSS_CONFIG, HASH_KEY_BYTES, LUT_ENTRIES)),
        ]
        tail = b"".join(
            bytes(ly.OptionHead(id_, ctypes.sizeof(body), 0)) + bytes(body) for id_, body in options
        )
        descriptor = ly.DeviceDescriptor(
            max_registered_pages=1 << 20, tx_queue_entries=c.ring, rx_queue_entries=c.ring,
            default_num_queues=c.queues, mtu=c.mtu, counters=2 * c.queues,
            num_device_options=len(options),
            total_length=ctypes.sizeof(ly.DeviceDescriptor) + len(tail),
        )  # fmt: skip
        descriptor.mac[:] = c.mac
        data = bytes(descriptor) + tail
        _need(len(data) <= command.available_length, ly.Status.ERROR_INVALID_ARGUMENT, "no room")
        self._port.dma.write(command.device_descriptor_addr, data)

    def _verify_driver(self, command: ly.VerifyDriverCompatibility) -> None:
        size = ctypes.sizeof(ly.DriverInfo)
        _need(command.driver_info_len >= size, ly.Status.ERROR_INVALID_ARGUMENT, "too short")
        info = ly.DriverInfo.from_buffer_copy(self._port.dma.read(command.driver_info_addr, size))
        able = info.driver_capability_flags[0] & ly.CAPABILITY_DQO_RDA
        _need(bool(able), ly.Status.ERROR_FAILED_PRECONDITION, "the driver has no DQO with raw addressing")
        self._setup.driver_info = info

    def _configure(self, command: ly.ConfigureDeviceResources) -> None:
        _need(
            command.queue_format == ly.QUEUE_FORMAT_DQO_RDA, ly.Status.ERROR_INVALID_ARGUMENT,
            f"queue format {command.queue_format}",
        )  # fmt: skip
        _need(not self._setup.blocks, ly.Status.ERROR_ALREADY_EXISTS, "configured already")
        count, base = int(command.num_irq_dbs), int(command.ntfy_blk_msix_base_idx)
        _need(
            count > 0 and base + count < self._port.vectors, ly.Status.ERROR_OUT_OF_RANGE,
            f"{count} notify blocks from vector {base} of {self._port.vectors}",
        )  # fmt: skip
        _need(command.irq_db_stride >= 4, ly.Status.ERROR_INVALID_ARGUMENT, "stride")
        for i in range(count):
            self._port.dma.write(command.irq_db_addr + i * command.irq_db_stride, i.to_bytes(4, "big"))
        self._setup.configure(count, base)

    def _deconfigure(self, command: None) -> None:
        self._setup.deconfigure()

    # -- queues -------------------------------------------------------------------------------

    def _check_queue(self, queues: dict[int, Any], id_: int, block: int, sizes: list[int]) -> None:
        _need(bool(self._setup.blocks), ly.Status.ERROR_FAILED_PRECONDITION, "no resources are configured")
        _need(id_ < self._port.config.queues, ly.Status.ERROR_OUT_OF_RANGE, f"queue {id_}")
        _need(id_ not in queues, ly.Status.ERROR_ALREADY_EXISTS, f"queue {id_}")
        _need(block < len(self._setup.blocks), ly.Status.ERROR_OUT_OF_RANGE, f"notify block {block}")
        for size in sizes:
            _need(
                size > 0 and size & (size - 1) == 0 and size <= 1 << 15, ly.Status.ERROR_INVALID_ARGUMENT,
                f"a ring of {size}",
            )  # fmt: skip

    def _create_tx_queue(self, c: ly.CreateTxQueue) -> None:
        self._check_queue(self._setup.tx_queues, c.queue_id, c.ntfy_id, [c.tx_ring_size, c.tx_comp_ring_size])
        _need(
            c.queue_page_list_id == ly.RAW_ADDRESSING_QPL_ID, ly.Status.ERROR_INVALID_ARGUMENT, "a page list"
        )
        doorbell = regs.TX_DOORBELLS + int(c.queue_id)
        self._port.dma.write(c.queue_resources_addr, bytes(ly.QueueResources(doorbell, c.queue_id)))
        self._setup.tx_queues[c.queue_id] = TxQueue(self._port, c, self._setup.blocks[c.ntfy_id])

    def _create_rx_queue(self, c: ly.CreateRxQueue) -> None:
        self._check_queue(self._setup.rx_queues, c.queue_id, c.ntfy_id, [c.rx_ring_size, c.rx_buff_ring_size])
        _need(
            c.queue_page_list_id == ly.RAW_ADDRESSING_QPL_ID, ly.Status.ERROR_INVALID_ARGUMENT, "a page list"
        )
        _need(
            0 < c.packet_buffer_size < 1 << 14, ly.Status.ERROR_INVALID_ARGUMENT,
            f"buffers of {c.packet_buffer_size} bytes",
        )  # fmt: skip
        _need(
            c.header_buffer_size <= self._port.config.header_buffer, ly.Status.ERROR_INVALID_ARGUMENT,
            f"header buffers of {c.header_buffer_size} bytes",
        )  # fmt: skip
        doorbell, counter = regs.RX_DOORBELLS + int(c.queue_id), self._port.config.queues + c.queue_id
        self._port.dma.write(c.queue_resources_addr, bytes(ly.QueueResources(doorbell, counter)))
        self._setup.rx_queues[c.queue_id] = RxQueue(self._port, c, self._setup.blocks[c.ntfy_id])

    def _destroy_tx_queue(self, command: ly.DestroyQueue) -> None:
        _need(
            self._setup.tx_queues.pop(command.queue_id, None) is not None, ly.Status.ERROR_NOT_FOUND,
            f"queue {command.queue_id}",
        )  # fmt: skip

    def _destroy_rx_queue(self, command: ly.DestroyQueue) -> None:
        _need(
            self._setup.rx_queues.pop(command.queue_id, None) is not None, ly.Status.ERROR_NOT_FOUND,
            f"queue {command.queue_id}",
        )  # fmt: skip

    # -- steering -----------------------------------------------------------------------------

    def _configure_rss(self, c: ly.ConfigureRss) -> None:
        steering, dma = self._setup.steering, self._port.dma
        _need(
            c.hash_key_size in (0, HASH_KEY_BYTES) and c.hash_lut_size in (0, LUT_ENTRIES),
            ly.Status.ERROR_INVALID_ARGUMENT, "size of key or table",
        )  # fmt: skip
        lut = list(steering.lut)
        if c.hash_lut_size:
            lut = list((c_uint32.__ctype_be__ * LUT_ENTRIES).from_buffer_copy(
                dma.read(c.hash_lut_addr, 4 * LUT_ENTRIES)
            ))  # fmt: skip
            _need(max(lut) < self._port.config.queues, ly.Status.ERROR_OUT_OF_RANGE, "a queue of the table")
        if c.hash_key_size:
            steering.set_key(dma.read(c.hash_key_addr, HASH_KEY_BYTES))
        steering.lut, steering.hash_types, steering.hash_alg = lut, int(c.hash_types), int(c.hash_alg)

    def _query_rss(self, command: ly.QueryRss) -> None:
        s = self._setup.steering
        body = s.rss_key + bytes((c_uint32.__ctype_be__ * LUT_ENTRIES)(*s.lut))
        head = ly.QueryRssDescriptor(
            ctypes.sizeof(ly.QueryRssDescriptor) + len(body), s.hash_types, s.hash_alg, 0
        )
        data = bytes(head) + body
        _need(len(data) <= command.available_length, ly.Status.ERROR_INVALID_ARGUMENT, "no room")
        self._port.dma.write(command.rss_descriptor_addr, data)

    def _extended(self, command: ly.ExtendedCommand) -> None:
        known = self._extended_table.get(command.inner_opcode)
        if known is None:
            raise CommandError(ly.Status.ERROR_UNIMPLEMENTED, f"extended {command.inner_opcode:#x}")
        layout, handler = known
        forced = self._port.faults.commands.pop(command.inner_opcode, None)
        if forced is not None:
            raise CommandError(ly.Status(forced), "as asked")
        _need(
            ctypes.sizeof(layout) <= command.inner_length <= MAX_INNER, ly.Status.ERROR_INVALID_ARGUMENT,
            f"{command.inner_length} bytes",
        )  # fmt: skip
        handler(layout.from_buffer_copy(
            self._port.dma.read(command.inner_command_addr, ctypes.sizeof(layout))
        ))  # fmt: skip

    def _configure_flow_rule(self, command: ly.ConfigureFlowRule) -> None:
        steering, config = self._setup.steering, self._port.config
        if command.opcode == ly.FlowRuleOp.RESET:
            steering.clear_rules()
            return
        location = int(command.location)
        if command.opcode == ly.FlowRuleOp.DEL:
            _need(location in steering.rules, ly.Status.ERROR_NOT_FOUND, f"rule {location}")
            steering.set_rule(location, None)
            return
        _need(command.opcode == ly.FlowRuleOp.ADD, ly.Status.ERROR_INVALID_ARGUMENT, "what to do")
        _need(location < config.max_rules, ly.Status.ERROR_OUT_OF_RANGE, f"rule {location}")
        _need(location not in steering.rules, ly.Status.ERROR_ALREADY_EXISTS, f"rule {location}")
        rule = ly.FlowRule.from_buffer_copy(command.rule)
        _need(rule.flow_type in RULE_KINDS, ly.Status.ERROR_UNIMPLEMENTED, f"flow type {rule.flow_type}")
        _need(rule.action < config.queues, ly.Status.ERROR_OUT_OF_RANGE, f"queue {rule.action}")
        steering.set_rule(location, rule)

    def _query_flow_rules(self, command: ly.QueryFlowRules) -> None:
        rules = self._setup.steering.rules
        room = int(command.available_length) - ctypes.sizeof(ly.QueryFlowRulesDescriptor)
        places = sorted(at for at in rules if at >= command.starting_rule_id)
        if command.opcode == ly.FlowRuleQuery.STATS:
            entries = list[bytes]()
        elif command.opcode == ly.FlowRuleQuery.IDS:
            entries = [at.to_bytes(4, "big") for at in places]
        elif command.opcode == ly.FlowRuleQuery.RULES:
            entries = [bytes(ly.QueriedFlowRule(at, rules[at])) for at in places]
        else:
            raise CommandError(ly.Status.ERROR_INVALID_ARGUMENT, "what to query")
        _need(room >= 0, ly.Status.ERROR_INVALID_ARGUMENT, "no room")
        if entries:
            entries = entries[: room // len(entries[0])]
        body = b"".join(entries)
        head = ly.QueryFlowRulesDescriptor(
            len(rules), self._port.config.max_rules, len(entries),
            ctypes.sizeof(ly.QueryFlowRulesDescriptor) + len(body),
        )  # fmt: skip
        self._port.dma.write(command.rule_descriptor_addr, bytes(head) + body)

    # -- small things -------------------------------------------------------------------------

    def _set_driver_parameter(self, command: ly.SetDriverParameter) -> None:
        _need(
            command.parameter_type == ly.SET_PARAM_MTU, ly.Status.ERROR_INVALID_ARGUMENT,
            f"parameter {command.parameter_type}",
        )  # fmt: skip
        _need(
            68 <= command.parameter_value <= self._port.config.max_mtu, ly.Status.ERROR_OUT_OF_RANGE,
            f"MTU {command.parameter_value}",
        )  # fmt: skip
        self._setup.mtu = int(command.parameter_value)

    def _report_stats(self, command: ly.ReportStats) -> None:
        _need(command.stats_report_len <= 1 << 20, ly.Status.ERROR_INVALID_ARGUMENT, "size of the report")
        address, length = int(command.stats_report_addr), int(command.stats_report_len)
        self._setup.stats_report = (address, length) if length else None

    def _report_link_speed(self, command: ly.ReportLinkSpeed) -> None:
        self._port.dma.write(command.link_speed_address, self._port.config.link_speed.to_bytes(8, "big"))

    def _get_ptype_map(self, command: ly.GetPtypeMap) -> None:
        data = ptype_map()
        _need(command.ptype_map_len >= len(data), ly.Status.ERROR_INVALID_ARGUMENT, "no room")
        self._port.dma.write(command.ptype_map_addr, data)


def _name(opcode: int) -> str:
    return ly.Opcode(opcode).name if opcode in list(ly.Opcode) else f"{opcode:#x}"
