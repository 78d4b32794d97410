"""Captures: what tshark reads of them, with headers in clear and device payload by reference."""

from __future__ import annotations

import errno
import io
import re
import shutil
import socket
import subprocess
import time

import numpy as np
import pytest

from conftest import make_provider, need, payload, take
from netmem.lab.device import open_device
from netmem.testing import frames


def tshark(path, *fields):
    """Rows of fields that tshark finds in a capture."""
    need(shutil.which("tshark"), "tshark is not there")
    argv = ["tshark", "-r", str(path), "-T", "fields", "-E", "separator=|"]
    for field in fields:
        argv += ["-e", field]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    return [line.split("|") for line in done.stdout.splitlines()]


def test_tshark_reads_headers_and_where_payload_lies(network, tmp_path, nic):
    net = network(nic=nic)
    provider = make_provider("dmabuf")
    net.bind(provider)
    path = tmp_path / "x.pcapng"
    net.ours.dev.start_capture(open(path, "wb"))
    ours, theirs, _ = net.connect()
    theirs.send(payload(5000))
    net.until(lambda: ours.queued() == 5000)
    message = ours.recvmsg_devmem()
    binding = net.ours.dev.bind_tx(provider)
    ours.sendmsg_devmem(message.frags, binding)
    net.until(lambda: theirs.queued() == message.size)
    assert take(theirs, None) == payload(5000)
    ours.devmem_dontneed(message.frags["frag_token"])
    net.run(50)
    binding.close()
    net.ours.dev.stop_capture()
    rows = tshark(path, "frame.len", "frame.cap_len", "ip.src", "tcp.len", "tcp.flags.syn", "frame.comment")
    assert any(row[4] in ("1", "True") and row[2] == frames.THEIRS for row in rows)
    received = [row for row in rows if row[2] == frames.THEIRS and row[5]]
    sent = [row for row in rows if row[2] == frames.OURS and row[5]]
    assert sum(int(row[3]) for row in received) == 5000
    for row in received:
        assert int(row[0]) - int(row[1]) == int(row[3])  # all that is missing is payload
    refs = [re.match(r"dmabuf (\d+) offset (\d+) length (\d+)$", row[5]) for row in received]
    frag = message.frags[0]
    assert refs[0].groups() == (str(net.binding.id), str(frag["frag_offset"]), str(frag["frag_size"]))
    assert f"dmabuf {binding.id} offset {frag['frag_offset']}" in sent[0][5]
    data = path.read_bytes()
    assert payload(5000)[100:200] not in data  # no byte of device payload is in the file


def test_readable_payload_is_in_the_capture(network, tmp_path):
    net = network()
    path = tmp_path / "x.pcapng"
    net.ours.dev.start_capture(open(path, "wb"))
    ours, theirs, _ = net.connect()
    theirs.send(b"in clear " * 100)
    net.until(lambda: ours.queued() == 900)
    ours.send(b"and back " * 100)
    net.run(5)
    net.ours.dev.stop_capture()
    rows = tshark(path, "frame.len", "frame.cap_len", "frame.comment", "tcp.payload")
    assert all(row[0] == row[1] and not row[2] for row in rows)
    assert {(b"in clear " * 100).hex(), (b"and back " * 100).hex()} <= {row[3] for row in rows}


def test_ipv6_udp_and_a_closed_file(network, tmp_path):
    net = network(alone=True)
    path = tmp_path / "x.pcapng"
    capture = net.ours.dev.start_capture(open(path, "wb"))
    for frame in (frames.tcp6(b"x" * 30), frames.udp6(b"y" * 30), frames.icmp_echo()):
        net.wire.inject(frame)
        net.run(1)
    net.ours.dev.stop_capture()
    assert net.ours.dev.capture is None
    net.wire.inject(frames.icmp_echo())
    net.run(1)
    protocols = [row[0] for row in tshark(path, "frame.protocols")]
    assert protocols[0] == "eth:ethertype:ipv6:tcp:data" or protocols[0].startswith("eth:ethertype:ipv6:tcp")
    assert any(p.startswith("eth:ethertype:ipv6:udp") for p in protocols)
    assert capture.packets >= 3
    assert np.frombuffer(path.read_bytes()[:4], "<u4")[0] == 0x0A0D0D0A


def test_a_capture_whose_file_cannot_be_closed_has_ended_all_the_same(network, tmp_path):
    class Full(io.FileIO):
        def close(self):
            super().close()
            raise OSError(errno.ENOSPC, "no space")

    net = network(alone=True)
    net.ours.dev.start_capture(Full(tmp_path / "x.pcapng", "wb"))
    with pytest.raises(OSError, match="no space"):
        net.ours.dev.stop_capture()
    net.wire.inject(frames.icmp_echo())
    net.run(1)


@pytest.mark.process
def test_each_packet_has_its_own_time(tmp_path):
    """Of packets that one poll takes, too; and the file's times are this machine's, to the nanosecond."""
    path = tmp_path / "x.pcapng"
    before = time.time()
    with open_device() as device:
        device.ethtool.set_features(rx_gro_hw=False)
        with device.dev.lock:
            device.dev.start_capture(open(path, "wb"))
        listener, port = device.listen(5001), device.forward("127.0.0.1", 0, 5001)
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            sock = listener.accept(timeout=30)
            client.sendall(payload(500_000))
            client.shutdown(socket.SHUT_WR)
            while sock.recv(1 << 20, timeout=30):
                pass
            sock.close()
    stamps = [row[0] for row in tshark(path, "frame.time_epoch", "tcp.dstport") if row[1] == "5001"]
    assert len(stamps) > 100
    assert len(set(stamps)) == len(stamps)
    assert sorted(stamps) == stamps
    assert before < float(stamps[0]) < float(stamps[-1]) < time.time()
    assert any(not stamp.endswith("000") for stamp in stamps)
