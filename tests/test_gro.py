"""Parsing and GRO against slow twins, and malformed frames against the whole stack."""

from __future__ import annotations

import dpkt
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import make_provider, payload
from netmem.base.checksum import csum_add, csum_fold, inet_checksum
from netmem.base.jit import kernel
from netmem.inet.tcp.tcb import TcpState
from netmem.netdev import batch as bt
from netmem.netdev.kernels import gro_receive, parse
from netmem.testing import frames
from netmem.testing.net import PORT, Network


@kernel
def receive(batch_at, i):
    gro_receive(bt.BatchRecord.at(batch_at), i)


@kernel
def parse_row(batch_at, i):
    batch = bt.BatchRecord.at(batch_at)
    return parse(batch, bt.row_of(batch, i))


class Rows:
    """A batch filled by hand from frames, as a driver with header split would."""

    def __init__(self, frame_list, *, header=54, verified=True):
        self.batch = bt.RxBatch()
        self.keep = []
        for i, frame in enumerate(frame_list):
            head = np.frombuffer(bytearray(frame[:header] or b"\0"), np.uint8)
            self.keep.append(head)
            row = self.batch.row(i)
            row.header, row.header_len = head.ctypes.data, min(len(frame), header)
            row.netmem, row.size, row.more = i + 1, max(0, len(frame) - header), -1
            row.status = bt.Rx.L3_OK | bt.Rx.L4_OK if verified else 0
        self.n = len(frame_list)

    def gro(self):
        for i in range(self.n):
            receive(self.batch.at, i)
        return self.batch


@given(st.binary(max_size=300), st.integers(0, 0xFFFF))
def test_checksum_kernels_agree_with_the_slow_one(data, start):
    memory = np.frombuffer(bytearray(data or b"\0"), np.uint8)
    expected = inet_checksum(start.to_bytes(2, "big") + data)
    assert csum_fold(csum_add(memory.ctypes.data, len(data), start)) == expected


segment = st.fixed_dictionaries(
    {
        "flow": st.integers(0, 2),
        "size": st.integers(0, 40),
        "flags": st.sampled_from([0x10, 0x10, 0x10, 0x18, 0x11, 0x12, 0x14]),
        "gap": st.sampled_from([0, 0, 0, 0, 5]),
        "ack": st.sampled_from([7, 7, 7, 8]),
    }
)


@given(st.lists(segment, max_size=40))
def test_merging_loses_no_byte_and_no_order(specs):
    """For each flow: the merged packets, read in order, are the packets that went in."""
    seq, made = {}, []
    for spec in specs:
        at = seq.get(spec["flow"], 1000) + spec["gap"]
        body = bytes([len(made) % 256]) * spec["size"]
        made.append((spec["flow"], at, spec["flags"], spec["ack"], body))
        seq[spec["flow"]] = at + spec["size"]
    rows = Rows(
        [
            frames.tcp(body, sport=5000 + flow, seq=at, flags=flags, ack=ack)
            for flow, at, flags, ack, body in made
        ]
    )
    batch = rows.gro()
    seen = {0: [], 1: [], 2: []}
    for head in batch.heads():
        total, i = 0, head
        while i >= 0:
            flow, at, flags, ack, body = made[i]
            seen[flow].append(i)
            assert batch.row(i).seq == at
            assert (batch.row(head).seq + total) & 0xFFFFFFFF == at
            assert ack == made[head][3]
            if i != head:
                assert flags & ~0x08 == 0x10
                assert made[head][2] & ~0x08 == 0x10
            total += len(body)
            i = batch.row(i).next
        assert batch.row(head).len == total
    for flow, order in seen.items():
        assert order == [i for i, item in enumerate(made) if item[0] == flow]


def test_a_run_of_one_flow_becomes_one_packet():
    at, run = 1, []
    for _ in range(20):
        run.append(frames.tcp(payload(1448), seq=at))
        at += 1448
    batch = Rows(run).gro()
    assert len(batch) == 1
    assert batch.row(0).len == 20 * 1448
    assert batch.counters()["gro_merged"] == 19


@given(st.binary(max_size=120))
def test_parse_accepts_only_what_an_independent_parser_does(noise):
    """Random changes to a good frame: what we take for TCP, dpkt takes for the same TCP."""
    frame = bytearray(frames.tcp(payload(60), options=bytes.fromhex("0101080a0000000100000002")))
    for i in range(0, len(noise) - 1, 2):
        frame[14 + noise[i] % (len(frame) - 14)] = noise[i + 1]
    rows = Rows([bytes(frame)], header=66, verified=False)
    row = rows.batch.row(0)
    row.header_len = len(frame)
    keep = np.frombuffer(frame, np.uint8)
    row.header, row.size = keep.ctypes.data, 0
    if parse_row(rows.batch.at, 0) != bt.Kind.TCP:
        return
    ip = dpkt.ip.IP(bytes(frame[14:]))
    assert isinstance(ip.data, dpkt.tcp.TCP)
    assert (ip.data.sport << 16 | ip.data.dport) == row.ports
    assert (ip.data.seq, ip.data.ack, ip.data.flags) == (row.seq, row.ack, row.tcp_flags)
    assert len(ip.data.data) == row.len


MALFORMED = [
    ("rx_unknown_ethertype", frames.ethernet(bytes(50), 0x88B5)),
    ("rx_bad_ip_header", frames.ethernet(bytes(50), 0x86DD)),
    ("rx_bad_ip_header", frames.ethernet(b"\x44" + bytes(40))),
    ("rx_bad_ip_header", frames.ethernet(b"\x65" + bytes(40))),
    ("rx_bad_ip_length", frames.ethernet(frames.ipv4(frames.tcp_segment(), total=10))),
    ("rx_bad_ip_length", frames.ethernet(frames.ipv4(frames.tcp_segment(), total=1000))),
    ("rx_bad_ip_csum", frames.tcp(payload(9))[:20] + b"\xff" + frames.tcp(payload(9))[21:]),
    ("rx_fragment", frames.ethernet(frames.ipv4(frames.tcp_segment(payload(64)), fragment=0x2000))),
    ("rx_fragment", frames.ethernet(frames.ipv4(payload(64), fragment=5))),
    ("rx_unknown_proto", frames.ethernet(frames.ipv4(payload(20), proto=132))),
    ("rx_bad_tcp_header", frames.ethernet(frames.ipv4(b"too short"))),
    ("rx_bad_tcp_header", frames.tcp(offset=4)),
    ("rx_bad_tcp_header", frames.tcp(offset=15)),
    ("rx_bad_l4_csum", frames.tcp(payload(99))[:-1] + b"\x00"),
]


@pytest.mark.parametrize(("counter", "frame"), MALFORMED)
@pytest.mark.parametrize("memory", ["none", "dmabuf"])
def test_malformed_frames_are_counted_by_name_and_cost_no_netmem(network, memory, counter, frame):
    net = network(alone=True, rx_queues=1)
    provider = make_provider(memory)
    net.bind(provider, queue=0)
    net.run(1)
    pool = net.ours.dev.rx_queues[0].pool
    before = pool.outstanding()
    for _ in range(5):
        net.wire.inject(frame)
    net.run(2)
    assert net.ours.dev.batch.counters()[counter] == 5
    assert pool.outstanding() == before


def established(net: Network):
    """Our side of a connection whose other end is the test: (socket, our next sequence number)."""
    listener = net.ours.stack.listen(PORT)
    net.wire.inject(frames.arp())
    net.wire.inject(frames.tcp(flags=2, seq=99, options=bytes.fromhex("020405b40303070101")))
    net.run(3)
    answer = dpkt.ethernet.Ethernet([f for f in net.wire.sent if f[12:14] == b"\x08\x00"][-1])
    iss = answer.data.data.seq + 1
    net.wire.inject(frames.tcp(flags=16, seq=100, ack=iss))
    net.run(2)
    return listener.accept(timeout=0), iss


@given(
    st.lists(
        st.tuples(
            st.integers(-60, 400),
            st.integers(0, 120),
            st.integers(0, 255),
            st.integers(-5, 5),
            st.sampled_from([0, 100, 65535]),
            st.binary(max_size=12),
        ),
        max_size=30,
    )
)
def test_any_segments_never_raise_and_bytes_are_right(specs):
    """Overlapping, reordered and nonsensical segments of one stream: what is delivered is the stream."""
    stream = payload(600)
    with Network(alone=True) as net:
        provider = make_provider("dmabuf", size=1 << 21)
        net.bind(provider)
        sock, iss = established(net)
        view = provider.map()
        got = bytearray()
        for offset, size, flags, ack, window, options in specs:
            start = max(0, offset)
            body = stream[start : start + size] if offset >= 0 else b""
            net.wire.inject(
                frames.tcp(
                    body,
                    seq=(100 + offset) & 0xFFFFFFFF,
                    flags=flags & ~0x05,
                    ack=(iss + ack) & 0xFFFFFFFF,
                    window=window,
                    options=options,
                )
            )
            net.run(1)
            net.wire.sent.clear()
            while sock.queued():
                message = sock.recvmsg_devmem()
                got += message.linear
                for frag in message.frags:
                    at = int(frag["frag_offset"])
                    got += view[at : at + int(frag["frag_size"])].tobytes()
                sock.devmem_dontneed(message.frags["frag_token"])
        assert stream.startswith(bytes(got))
        assert sock.state() == TcpState.ESTABLISHED


@given(st.lists(st.binary(max_size=150), max_size=20), st.booleans())
def test_random_frames_never_raise_and_cost_nothing(blobs, plausible):
    with Network(alone=True, rx_queues=1) as net:
        net.bind(make_provider("dmabuf", size=1 << 21), queue=0)
        net.ours.stack.listen(PORT)
        net.run(1)
        pool = net.ours.dev.rx_queues[0].pool
        before = pool.outstanding()
        for blob in blobs:
            net.wire.inject(frames.ethernet(blob, 0x0800 if plausible else 0x0806))
            net.wire.inject(frames.ethernet(frames.ipv4(blob)))
            net.wire.inject(blob)
        net.run(5)
        assert pool.outstanding() == before
        assert net.ours.stack.statistics()["connections"] == []


@given(st.binary(min_size=20, max_size=80))
def test_random_tcp_headers_with_right_checksums_never_raise(header):
    with Network(alone=True, rx_queues=1) as net:
        listener = net.ours.stack.listen(PORT)
        net.wire.inject(frames.arp())
        body = header[:2] + PORT.to_bytes(2, "big") + header[4:12] + bytes([0x50 | header[12] & 0x50])
        body += header[13:16] + b"\0\0" + header[18:]
        pseudo = bytes([10, 0, 2, 2, 10, 0, 2, 15, 0, 6]) + len(body).to_bytes(2, "big")
        body = body[:16] + inet_checksum(pseudo + body).to_bytes(2, "big") + body[18:]
        net.wire.inject(frames.ethernet(frames.ipv4(body)))
        net.run(3)
        listener.close()
