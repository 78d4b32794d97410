"""gve's admin queue: big-endian layouts, one class each (gve_adminq.h).

Field names are those of the driver's headers, whose structure each docstring names.
"""

from __future__ import annotations

import ctypes
from ctypes import c_uint8, c_uint16, c_uint32, c_uint64
from enum import IntEnum, IntFlag


class _Big(ctypes.BigEndianStructure):
    _pack_ = 1


COMMAND_BYTES = 64


class Opcode(IntEnum):
    """enum gve_adminq_opcodes, and those of the extended command."""

    DESCRIBE_DEVICE = 0x1
    CONFIGURE_DEVICE_RESOURCES = 0x2
    CREATE_TX_QUEUE = 0x5
    CREATE_RX_QUEUE = 0x6
    DESTROY_TX_QUEUE = 0x7
    DESTROY_RX_QUEUE = 0x8
    DECONFIGURE_DEVICE_RESOURCES = 0x9
    CONFIGURE_RSS = 0xA
    SET_DRIVER_PARAMETER = 0xB
    REPORT_STATS = 0xC
    REPORT_LINK_SPEED = 0xD
    GET_PTYPE_MAP = 0xE
    VERIFY_DRIVER_COMPATIBILITY = 0xF
    QUERY_FLOW_RULES = 0x10
    QUERY_RSS = 0x12
    EXTENDED_COMMAND = 0xFF
    CONFIGURE_FLOW_RULE = 0x101


class Status(IntEnum):
    """enum gve_adminq_statuses."""

    PASSED = 0x1
    ERROR_ABORTED = 0xFFFFFFF0
    ERROR_ALREADY_EXISTS = 0xFFFFFFF1
    ERROR_CANCELLED = 0xFFFFFFF2
    ERROR_DATALOSS = 0xFFFFFFF3
    ERROR_DEADLINE_EXCEEDED = 0xFFFFFFF4
    ERROR_FAILED_PRECONDITION = 0xFFFFFFF5
    ERROR_INTERNAL_ERROR = 0xFFFFFFF6
    ERROR_INVALID_ARGUMENT = 0xFFFFFFF7
    ERROR_NOT_FOUND = 0xFFFFFFF8
    ERROR_OUT_OF_RANGE = 0xFFFFFFF9
    ERROR_PERMISSION_DENIED = 0xFFFFFFFA
    ERROR_UNAUTHENTICATED = 0xFFFFFFFB
    ERROR_RESOURCE_EXHAUSTED = 0xFFFFFFFC
    ERROR_UNAVAILABLE = 0xFFFFFFFD
    ERROR_UNIMPLEMENTED = 0xFFFFFFFE
    ERROR_UNKNOWN_ERROR = 0xFFFFFFFF


class CommandHead(_Big):
    """What every command starts with (union gve_adminq_command); the device writes ``status``."""

    _fields_ = (("opcode", c_uint32), ("status", c_uint32))


class DescribeDevice(_Big):
    """struct gve_adminq_describe_device."""

    _fields_ = (
        ("device_descriptor_addr", c_uint64),
        ("device_descriptor_version", c_uint32),
        ("available_length", c_uint32),
    )


class DeviceDescriptor(_Big):
    """struct gve_device_descriptor; options follow."""

    _fields_ = (
        ("max_registered_pages", c_uint64),
        ("reserved1", c_uint16),
        ("tx_queue_entries", c_uint16),
        ("rx_queue_entries", c_uint16),
        ("default_num_queues", c_uint16),
        ("mtu", c_uint16),
        ("counters", c_uint16),
        ("tx_pages_per_qpl", c_uint16),
        ("rx_pages_per_qpl", c_uint16),
        ("mac", c_uint8 * 6),
        ("num_device_options", c_uint16),
        ("total_length", c_uint16),
        ("reserved2", c_uint8 * 6),
    )


class OptionHead(_Big):
    """struct gve_device_option; ``option_length`` bytes follow."""

    _fields_ = (("option_id", c_uint16), ("option_length", c_uint16), ("required_features_mask", c_uint32))


class OptionId(IntEnum):
    """enum gve_dev_opt_id."""

    DQO_RDA = 0x4
    MODIFY_RING = 0x6
    JUMBO_FRAMES = 0x8
    BUFFER_SIZES = 0xA
    FLOW_STEERING = 0xB
    RSS_CONFIG = 0xE


class Feature(IntFlag):
    """enum gve_sup_feature_mask."""

    MODIFY_RING = 1 << 0
    JUMBO_FRAMES = 1 << 2
    BUFFER_SIZES = 1 << 4
    FLOW_STEERING = 1 << 5
    RSS_CONFIG = 1 << 7


class OptionDqoRda(_Big):
    """struct gve_device_option_dqo_rda; its mask gates the other options."""

    _fields_ = (("supported_features_mask", c_uint32), ("reserved", c_uint32))


class OptionJumboFrames(_Big):
    """struct gve_device_option_jumbo_frames."""

    _fields_ = (("supported_features_mask", c_uint32), ("max_mtu", c_uint16), ("padding", c_uint16))


class OptionBufferSizes(_Big):
    """struct gve_device_option_buffer_sizes."""

    _fields_ = (
        ("supported_features_mask", c_uint32),
        ("packet_buffer_size", c_uint16),
        ("header_buffer_size", c_uint16),
    )


class OptionModifyRing(_Big):
    """struct gve_device_option_modify_ring."""

    _fields_ = (
        ("supported_features_mask", c_uint32),
        ("max_rx_ring_size", c_uint16),
        ("max_tx_ring_size", c_uint16),
        ("min_rx_ring_size", c_uint16),
        ("min_tx_ring_size", c_uint16),
    )


class OptionFlowSteering(_Big):
    """struct gve_device_option_flow_steering."""

    _fields_ = (("supported_features_mask", c_uint32), ("reserved", c_uint32), ("max_flow_rules", c_uint32))


class OptionRssConfig(_Big):
    """struct gve_device_option_rss_config."""

    _fields_ = (
        ("supported_features_mask", c_uint32),
        ("hash_key_size", c_uint16),
        ("hash_lut_size", c_uint16),
    )


class ConfigureDeviceResources(_Big):
    """struct gve_adminq_configure_device_resources."""

    _fields_ = (
        ("counter_array", c_uint64),
        ("irq_db_addr", c_uint64),
        ("num_counters", c_uint32),
        ("num_irq_dbs", c_uint32),
        ("irq_db_stride", c_uint32),
        ("ntfy_blk_msix_base_idx", c_uint32),
        ("queue_format", c_uint8),
        ("padding", c_uint8 * 7),
    )


QUEUE_FORMAT_DQO_RDA = 3  # enum gve_queue_format


class CreateTxQueue(_Big):
    """struct gve_adminq_create_tx_queue."""

    _fields_ = (
        ("queue_id", c_uint32),
        ("reserved", c_uint32),
        ("queue_resources_addr", c_uint64),
        ("tx_ring_addr", c_uint64),
        ("queue_page_list_id", c_uint32),
        ("ntfy_id", c_uint32),
        ("tx_comp_ring_addr", c_uint64),
        ("tx_ring_size", c_uint16),
        ("tx_comp_ring_size", c_uint16),
        ("padding", c_uint8 * 4),
    )


class CreateRxQueue(_Big):
    """struct gve_adminq_create_rx_queue: "desc" is the completion ring, "data" the buffer queue."""

    _fields_ = (
        ("queue_id", c_uint32),
        ("index", c_uint32),
        ("reserved", c_uint32),
        ("ntfy_id", c_uint32),
        ("queue_resources_addr", c_uint64),
        ("rx_desc_ring_addr", c_uint64),
        ("rx_data_ring_addr", c_uint64),
        ("queue_page_list_id", c_uint32),
        ("rx_ring_size", c_uint16),
        ("packet_buffer_size", c_uint16),
        ("rx_buff_ring_size", c_uint16),
        ("enable_rsc", c_uint8),
        ("padding1", c_uint8),
        ("header_buffer_size", c_uint16),  # 0: no header split
        ("padding2", c_uint8 * 2),
    )


RAW_ADDRESSING_QPL_ID = 0xFFFFFFFF


class QueueResources(_Big):
    """struct gve_queue_resources: the device's answer."""

    _fields_ = (("db_index", c_uint32), ("counter_index", c_uint32))


class DestroyQueue(_Big):
    """struct gve_adminq_destroy_tx_queue, struct gve_adminq_destroy_rx_queue."""

    _fields_ = (("queue_id", c_uint32),)


class SetDriverParameter(_Big):
    """struct gve_adminq_set_driver_parameter."""

    _fields_ = (("parameter_type", c_uint32), ("reserved", c_uint32), ("parameter_value", c_uint64))


SET_PARAM_MTU = 1


class ReportStats(_Big):
    """struct gve_adminq_report_stats; ``interval`` in ms."""

    _fields_ = (("stats_report_len", c_uint64), ("stats_report_addr", c_uint64), ("interval", c_uint64))


class Stat(_Big):
    """struct stats, of which the report is made behind its ``written_count``."""

    _fields_ = (("stat_name", c_uint32), ("queue_id", c_uint32), ("value", c_uint64))


REPORT_HEAD = 8  # written_count


class StatName(IntEnum):
    """enum gve_stat_names, the NIC's part."""

    RX_QUEUE_DROP_CNT = 65
    RX_NO_BUFFERS_POSTED = 66
    RX_DROPS_PACKET_OVER_MRU = 67
    RX_DROPS_INVALID_CHECKSUM = 68


class ReportLinkSpeed(_Big):
    """struct gve_adminq_report_link_speed; the answer is bits a second, 8 bytes."""

    _fields_ = (("link_speed_address", c_uint64),)


class GetPtypeMap(_Big):
    """struct gve_adminq_get_ptype_map."""

    _fields_ = (("ptype_map_len", c_uint64), ("ptype_map_addr", c_uint64))


NUM_PTYPES = 1024


class L3Type(IntEnum):
    """enum gve_l3_type."""

    UNKNOWN = 0
    OTHER = 1
    IPV4 = 2
    IPV6 = 3


class L4Type(IntEnum):
    """enum gve_l4_type."""

    UNKNOWN = 0
    OTHER = 1
    TCP = 2
    UDP = 3
    ICMP = 4
    SCTP = 5


class VerifyDriverCompatibility(_Big):
    """struct gve_adminq_verify_driver_compatibility."""

    _fields_ = (("driver_info_len", c_uint64), ("driver_info_addr", c_uint64))


class DriverInfo(_Big):
    """struct gve_driver_info."""

    _fields_ = (
        ("os_type", c_uint8),
        ("driver_major", c_uint8),
        ("driver_minor", c_uint8),
        ("driver_sub", c_uint8),
        ("os_version_major", c_uint32),
        ("os_version_minor", c_uint32),
        ("os_version_sub", c_uint32),
        ("driver_capability_flags", c_uint64 * 4),
        ("os_version_str1", c_uint8 * 128),
        ("os_version_str2", c_uint8 * 128),
    )


CAPABILITY_DQO_RDA = 1 << 3  # enum gve_driver_capbility, of the first flags


class FlowSpec(_Big):
    """struct gve_flow_spec: addresses of IPv4 are the first four bytes."""

    _fields_ = (
        ("src_ip", c_uint8 * 16),
        ("dst_ip", c_uint8 * 16),
        ("src_port", c_uint16),
        ("dst_port", c_uint16),
        ("tos", c_uint8),  # or traffic class
        ("padding", c_uint8 * 3),
    )


class FlowRule(_Big):
    """struct gve_adminq_flow_rule."""

    _fields_ = (("flow_type", c_uint16), ("action", c_uint16), ("key", FlowSpec), ("mask", FlowSpec))


class ConfigureFlowRule(_Big):
    """struct gve_adminq_configure_flow_rule."""

    _fields_ = (("opcode", c_uint16), ("padding", c_uint8 * 2), ("rule", FlowRule), ("location", c_uint32))


class FlowRuleOp(IntEnum):
    """enum gve_adminq_flow_rule_cfg_opcode."""

    ADD = 0
    DEL = 1
    RESET = 2


class FlowType(IntEnum):
    """enum gve_adminq_flow_type, as far as rules for them are taken."""

    TCPV4 = 0
    UDPV4 = 1
    TCPV6 = 5
    UDPV6 = 6


class QueriedFlowRule(_Big):
    """struct gve_adminq_queried_flow_rule."""

    _fields_ = (("location", c_uint32), ("flow_rule", FlowRule))


class QueryFlowRules(_Big):
    """struct gve_adminq_query_flow_rules."""

    _fields_ = (
        ("opcode", c_uint16),
        ("padding", c_uint8 * 2),
        ("starting_rule_id", c_uint32),
        ("available_length", c_uint64),
        ("rule_descriptor_addr", c_uint64),
    )


class FlowRuleQuery(IntEnum):
    """enum gve_adminq_flow_rule_query_opcode."""

    RULES = 0
    IDS = 1
    STATS = 2


class QueryFlowRulesDescriptor(_Big):
    """struct gve_query_flow_rules_descriptor."""

    _fields_ = (
        ("num_flow_rules", c_uint32),
        ("max_flow_rules", c_uint32),
        ("num_queried_rules", c_uint32),
        ("total_length", c_uint32),
    )


class ConfigureRss(_Big):
    """struct gve_adminq_configure_rss; a size of 0 leaves what is there."""

    _fields_ = (
        ("hash_types", c_uint16),
        ("hash_alg", c_uint8),
        ("reserved", c_uint8),
        ("hash_key_size", c_uint16),
        ("hash_lut_size", c_uint16),
        ("hash_key_addr", c_uint64),
        ("hash_lut_addr", c_uint64),
    )


class QueryRss(_Big):
    """struct gve_adminq_query_rss."""

    _fields_ = (("available_length", c_uint64), ("rss_descriptor_addr", c_uint64))


class QueryRssDescriptor(_Big):
    """struct gve_query_rss_descriptor; key and table follow."""

    _fields_ = (
        ("total_length", c_uint32),
        ("hash_types", c_uint16),
        ("hash_alg", c_uint8),
        ("reserved", c_uint8),
    )


class ExtendedCommand(_Big):
    """struct gve_adminq_extended_command: a command too long for the queue lies elsewhere."""

    _fields_ = (("inner_opcode", c_uint32), ("inner_length", c_uint32), ("inner_command_addr", c_uint64))


for _layout, _size in {
    DescribeDevice: 16, DeviceDescriptor: 40, OptionHead: 8, OptionDqoRda: 8,
    OptionJumboFrames: 8, OptionBufferSizes: 8, OptionModifyRing: 12, OptionFlowSteering: 12,
    OptionRssConfig: 8, ConfigureDeviceResources: 40, CreateTxQueue: 48, CreateRxQueue: 56,
    SetDriverParameter: 16, ReportStats: 24, Stat: 16, GetPtypeMap: 16, DriverInfo: 304, FlowSpec: 40,
    FlowRule: 84, ConfigureFlowRule: 92, QueriedFlowRule: 88, QueryFlowRules: 24,
    QueryFlowRulesDescriptor: 16, ConfigureRss: 24, QueryRss: 16, QueryRssDescriptor: 8, ExtendedCommand: 16,
}.items():  # fmt: skip
    assert ctypes.sizeof(_layout) == _size, (_layout, ctypes.sizeof(_layout))
