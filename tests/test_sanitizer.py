"""The sanitiser: each thing that it traps, whom it names, and that it stays silent otherwise."""

from __future__ import annotations

import re

import numpy as np
import pytest

from conftest import make_provider, payload
from netmem.base.errors import NetmemError
from netmem.contract import mutants
from netmem.contract.rig import payload as bytes_of
from netmem.contract.run import judge, plan
from netmem.drivers.softnic import SoftnicDriver
from netmem.memory import sanitizer
from netmem.memory.layout import Holder
from netmem.memory.sanitizer import SanitizerError
from netmem.memory.shadow import SHADOW_BYTES, History
from netmem.testing import frames
from netmem.testing.net import PORT
from test_cli import Receiver
from test_gro import established
from test_page_pool import bound_provider, make_pool

ME = r"test_sanitizer\.py:\d+ in test_\w+"


@pytest.fixture(autouse=True)
def on():
    """Whatever the environment says."""
    before = sanitizer.ON
    sanitizer.enable()
    yield
    sanitizer.enable(before)


def trapped(error, trap, requirement, *events):
    """The error is this trap, and names these events in this order, the newest first."""
    assert (error.value.trap, error.value.requirement) == (trap, requirement)
    text = str(error.value)
    assert re.search(".*".join(events), text), text
    assert "\n" not in text
    return text


def test_double_put_names_both_puts():
    pool = make_pool()
    ref = int(pool.alloc_netmems(1)[0])
    pool.put_netmem(ref)
    with pytest.raises(SanitizerError) as error:
        pool.put_full_netmem(ref)
    text = trapped(
        error, "double put", "R7", rf"put \(pool {pool.id}\) by {ME}",
        rf"before: put into the ring \(pool {pool.id}\) by {ME}",
        rf"before that: allocated \(pool {pool.id}\) by {ME}",
    )  # fmt: skip
    assert f"netmem {ref:#x}" in text
    assert pool.record.counters.dead == 1
    assert pool.outstanding() == 0


@pytest.mark.parametrize("shared", [False, True])
def test_put_to_another_pool(shared):
    """Of other memory, or of the same: the plain pool cannot tell the latter."""
    provider = bound_provider() if shared else None
    pool, other = make_pool(provider), make_pool(provider)
    ref = int(pool.alloc_netmems(1)[0])
    with pytest.raises(SanitizerError) as error:
        other.put_netmem(np.array([ref]))
    trapped(error, "wrong pool", "R3", rf"put \(pool {other.id}\) by {ME}", rf"allocated \(pool {pool.id}\)")
    pool.put_netmem(ref)


@pytest.mark.parametrize("call", ["ref_netmem", "unref_netmem", "fragment_netmem", "dma_sync_netmem_for_cpu"])
def test_use_after_return(call):
    pool = make_pool()
    ref = int(pool.alloc_netmems(1)[0])
    pool.recycle_direct_netmem(ref)
    with pytest.raises(SanitizerError) as error:
        getattr(pool, call)(ref, *((0, 64) if call.startswith("dma") else (1,)))
    trapped(error, "use after return", "R7", ME, rf"put into the cache \(pool {pool.id}\) by {ME}")


def test_negative_reference_count():
    pool = make_pool()
    ref = int(pool.alloc_netmems(1)[0])
    pool.ref_netmem(ref)
    with pytest.raises(SanitizerError) as error:
        pool.unref_netmem(ref, 3)
    trapped(error, "negative reference count", "R7", "a reference dropped", "a reference taken", "allocated")


class NeverSyncs(mutants.NeverSyncs):
    """Named for the report."""


class SyncsForTheDevice(mutants.NeverSyncs):
    """Syncs for the device what the CPU is to have, and nothing else."""

    def napi_poll(self, queue, budget, batch):
        got = super().napi_poll(queue, budget, batch)
        pool = self._rx[queue].pool
        for row in mutants.payload_rows(batch):
            self.bus.sync_for_device(pool.get_dma_addr_netmem(row.netmem), 64)
        return got


class Unmaps(SoftnicDriver):
    """Ends the payload's mapping while the NIC has its buffers."""

    def napi_poll(self, queue, budget, batch):
        got = super().napi_poll(queue, budget, batch)
        pool = self._rx[queue].pool
        if got and queue == 1 and not hasattr(self, "done"):
            self.done = True
            self.bus.dma_unmap(pool.record.dma)
        return got


@pytest.mark.parametrize(
    ("driver", "trap", "requirement", "events"),
    [
        (NeverSyncs, "sync missing", "R6", (r"handed to the stack \(pool \d+\) by NeverSyncs.napi_poll\(\)",)),
        (SyncsForTheDevice, "sync in the wrong direction", "R6",
         (r"synced for the device \(pool \d+\) by test_sanitizer\.py:\d+ in napi_poll", "before: received")),
        (Unmaps, "write by the NIC after unmap", "R4",
         (r"unmapped \(pool \d+\) by test_sanitizer\.py:\d+ in napi_poll", "before: posted to the NIC")),
        (mutants.PutsWhatTheStackHas, "use after return", "R7",
         ("handed to the application", r"put into the \w+ \(pool \d+\) by recycling\.py:\d+ in rx_refill")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("memory", ["pages", "dmabuf"])
def test_drivers_are_caught_in_traffic(network, driver, trap, requirement, events, memory):
    net = network(alone=True, driver=driver)
    net.bind(make_provider(memory))
    with pytest.raises(SanitizerError) as error:
        traffic(net)
    leave(net)
    trapped(error, trap, requirement, *events)


def traffic(net):
    """Thirty segments, received and given back."""
    sock, iss = established(net)
    for i in range(30):
        net.wire.inject(frames.tcp(payload(1000), seq=100 + 1000 * i, ack=iss))
        net.run(2)
        while sock.queued():
            sock.devmem_dontneed(sock.recvmsg_devmem().frags["frag_token"])


def leave(net):
    """As the trap found it: its accounts are of no interest."""
    net.close = lambda: None
    net.ours.dev.board.close()  # whoever looks into this process later does not see it
    with sanitizer.collecting():
        net.ours.bus.unplug()


def test_the_nic_writes_where_nothing_is_mapped(network):
    """On the software NIC, which has an I/O MMU's eyes, the write itself is trapped as well."""
    net = network(alone=True)
    net.bind(make_provider("dmabuf"))
    with sanitizer.collecting() as found:
        net.ours.bus.dma_unmap(net.ours.dev.rx_queues[1].pool.record.dma)
        net.wire.inject(frames.tcp(payload(1000)))
        net.run(2)
    leave(net)
    assert [one.trap for one in found] == ["write by the NIC after unmap"] * 2
    assert "unmapped" in str(found[0])
    assert "written by the NIC" in str(found[1])


def test_a_token_returned_twice(network, nic):
    net = network(nic=nic)
    net.bind(make_provider("dmabuf"))
    ours, theirs, _ = net.connect(PORT)
    theirs.send(payload(4000))
    net.until(lambda: ours.queued() == 4000)
    tokens = ours.recvmsg_devmem().frags["frag_token"].copy()
    assert ours.devmem_dontneed(tokens[:2]) == 2
    for again in (tokens[1:3], tokens[[2, 2]]):
        with pytest.raises(SanitizerError) as error:
            ours.devmem_dontneed(again)
        trapped(error, "token returned twice", "", f"its token returned by {ME}", "before: .*by")
    assert ours.statistics()["tokens"] == len(tokens) - 3  # what was right about it was done


def test_every_event_of_traffic_has_a_source(network, nic):
    net = network(nic=nic)
    net.bind(make_provider("dmabuf"))
    ours, theirs, _ = net.connect(PORT)
    theirs.send(payload(20_000))
    net.until(lambda: ours.queued() == 20_000)
    message = ours.recvmsg_devmem()
    area = net.provider.area
    index = int(message.frags["frag_offset"][0]) >> 12
    history = History.nth(area.record.shadow + SHADOW_BYTES, index)
    last = sanitizer.newest(history)[:3]
    assert [event.kind for event in last] == [Holder.USER, Holder.BATCH, Holder.NIC]
    assert all(event.site for event in last)
    ours.devmem_dontneed(message.frags["frag_token"])


def test_off_there_is_no_shadow_and_the_plain_refusal():
    sanitizer.enable(False)
    pool = make_pool()
    assert pool.area.record.shadow == pool.record.synced == 0
    ref = int(pool.alloc_netmems(1)[0])
    pool.put_netmem(ref)
    with pytest.raises(NetmemError, match="not held from pool") as error:
        pool.put_netmem(ref)
    assert not isinstance(error.value, SanitizerError)


def test_the_kit_tells_what_only_the_sanitiser_saw():
    """A driver that the checks pass: it syncs late, after the stack has looked."""
    results = [judge(check, NeverSyncs, memory) for check, memory in plan(NeverSyncs, ("R6",))]
    assert any("sanitizer: sync missing" in result.trace for result in results)
    assert {result.outcome for result in results} == {"fail"}
    clean = [judge(check, SoftnicDriver, memory) for check, memory in plan(SoftnicDriver, ("R6",))]
    assert [result for result in clean if result.outcome != "pass" or result.trace] == []


def test_recv_with_the_sanitiser():
    data = bytes_of(500_000)
    with Receiver("--sanitize", "--count", "1") as receiver:
        receiver.send(data)
        status, events, err = receiver.end()
    assert (status, err) == (0, "")
    assert events[-1]["bytes"] == len(data)
    assert events[-1]["sanitized"] is True
