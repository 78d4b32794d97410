"""The page pool: creation rules in order, allocation and recycling against a slow twin, the end."""

from __future__ import annotations

import errno
import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import make_provider
from netmem.base.clock import SEC
from netmem.base.dma import DmaDirection
from netmem.base.errors import NetmemError
from netmem.memory import sanitizer
from netmem.memory.layout import (
    PP_FLAG_ALLOW_UNREADABLE_NETMEM,
    PP_FLAG_DMA_MAP,
    PP_FLAG_DMA_SYNC_DEV,
    Holder,
)
from netmem.memory.netmem import (
    net_iov_to_netmem,
    netmem_address,
    netmem_is_net_iov,
    netmem_to_net_iov,
    netmem_to_page,
    page_to_netmem,
)
from netmem.memory.page_pool import PagePool
from netmem.memory.params import PagePoolParams
from netmem.memory.ref import index_of

BOTH = PP_FLAG_DMA_MAP | PP_FLAG_DMA_SYNC_DEV
ALL = BOTH | PP_FLAG_ALLOW_UNREADABLE_NETMEM


@pytest.fixture(autouse=True, params=[False, True], ids=["plain", "sanitized"])
def sanitize(request):
    """Each test with the sanitiser off and on."""
    sanitizer.enable(request.param)
    yield
    sanitizer.enable()


class Device:
    """A DMA device that only keeps accounts."""

    def __init__(self):
        self.maps, self.watchers = {}, []

    def dma_map(self, fd, offset, length, direction, *, peer=False, exporter=""):
        io = 0x1000_0000 * (len(self.maps) + 1)
        self.maps[io] = (length, direction, peer)
        return io

    def dma_unmap(self, io_address):
        del self.maps[io_address]

    def dma_bounce(self, io_address):
        return 0


class Owner:
    """A net device with one queue, as far as a pool looks at it."""

    name = "test0"

    def __init__(self, provider=None):
        self.provider, self.registered = provider, True
        self.page_pools = set()

    def rxq_memory_provider(self, queue):
        return self.provider

    def rxq_binding_id(self, queue):
        return 1 if self.provider is not None else 0

    def is_registered(self):
        return self.registered


def bound_provider(memory="dmabuf", size=64 * 4096, rx_page_size=4096):
    return make_provider(memory, size=size, rx_page_size=rx_page_size)


def make_pool(provider=None, **params):
    defaults = {
        "flags": ALL,
        "dev": Device(),
        "max_len": 4096,
        "netdev": Owner(provider),
        "pages": 256 * 4096,
    }
    wanted = {**defaults, **params}
    if provider is not None and provider.unreadable:
        provider.attach(wanted["dev"])
    return PagePool(PagePoolParams(**wanted))


@pytest.mark.parametrize(
    ("params", "code", "text"),
    [
        ({"flags": 16}, errno.EINVAL, "unknown"),
        ({"flags": 16 | PP_FLAG_DMA_MAP, "dma_dir": DmaDirection.TO_DEVICE}, errno.EINVAL, "unknown"),
        ({"flags": PP_FLAG_DMA_MAP, "dma_dir": DmaDirection.TO_DEVICE}, errno.EINVAL, "direction"),
        ({"flags": PP_FLAG_DMA_SYNC_DEV}, errno.EINVAL, "without PP_FLAG_DMA_MAP"),
        ({"flags": BOTH, "max_len": 0}, errno.EINVAL, "max_len 0"),
        ({"flags": BOTH, "order": 11}, errno.EINVAL, "order 11"),
    ],
)
def test_creation_is_refused_in_the_kernels_order(params, code, text):
    with pytest.raises(NetmemError) as error:
        make_pool(**params)
    assert error.value.errno == code
    assert text in str(error.value)


@pytest.mark.parametrize("flags", [PP_FLAG_DMA_MAP, 0])
def test_a_provider_needs_both_dma_flags(flags):
    with pytest.raises(NetmemError) as error:
        make_pool(bound_provider(), flags=flags | PP_FLAG_ALLOW_UNREADABLE_NETMEM)
    assert error.value.errno == errno.EOPNOTSUPP


def test_a_provider_of_another_order_is_e2big_and_order_above_the_limit_is_legal_with_one():
    provider = bound_provider(rx_page_size=8192)
    with pytest.raises(NetmemError) as error:
        make_pool(provider)
    assert error.value.errno == errno.E2BIG
    assert make_pool(provider, order=1).area is provider.area


def test_without_the_flag_a_bound_provider_is_ignored():
    provider = bound_provider()
    pool = make_pool(provider, flags=BOTH)
    assert pool.provider is None
    assert not pool.is_unreadable()


@pytest.mark.parametrize(("size", "ring"), [(0, 1024), (5, 8), (512, 512), (100_000, 16384)])
def test_ring_size_is_clamped_silently(size, ring):
    assert make_pool(pool_size=size).record.ring.mask + 1 == ring


@pytest.mark.parametrize("memory", ["pages", "dmabuf", "none"])
def test_references(memory):
    pool = make_pool(bound_provider(memory) if memory != "none" else None)
    ref = int(pool.alloc_netmems(1)[0])
    assert netmem_is_net_iov(ref) == (memory == "dmabuf")
    assert ref >> 48 == 0
    assert (ref >> 32) & 0xFFFF == pool.area.id
    if memory == "dmabuf":
        assert netmem_address(ref) is None
        assert netmem_to_page(ref) is None
        assert net_iov_to_netmem(netmem_to_net_iov(ref)) == ref
        for call in (pool.put_page, pool.get_dma_addr, pool.recycle_direct):
            with pytest.raises(NetmemError) as error:
                call(ref)
            assert error.value.errno == errno.EINVAL
        for call in (pool.alloc, pool.alloc_pages):
            with pytest.raises(NetmemError, match="R3"):
                call(1)
    else:
        assert netmem_address(ref) == pool.area.address + ((ref >> 1 & 0x7FFFFFFF) << 12)
        page = netmem_to_page(ref)
        assert page_to_netmem(page) == ref
        assert pool.get_dma_addr(page) == pool.get_dma_addr_netmem(ref)
        pool.put_full_page(page)
    assert netmem_address(0) is None


def test_the_eleven_counters_follow_the_branches():
    pool = make_pool(bound_provider(size=512 * 4096), pool_size=64)
    refs = pool.alloc_netmems(64)
    stats = pool.get_stats()
    assert len(stats) == 11
    # What a provider gives is counted nowhere, as in the kernel.
    assert (stats["alloc_slow"], stats["alloc_fast"], stats["alloc_empty"]) == (0, 63, 1)
    pool.recycle_direct_netmem(refs)
    assert pool.get_stats()["recycle_cached"] == 64
    refs = pool.alloc_netmems(300)
    assert len(refs) == 300
    pool.put_netmem_bulk(refs[:64])
    assert pool.get_stats()["recycle_ring"] == 64
    pool.put_full_netmem(refs[64:65])
    assert pool.get_stats()["recycle_ring_full"] == 1
    assert pool.area.free == 512 - pool.inflight()
    pool.recycle_direct_netmem(refs[65:])
    stats = pool.get_stats()
    assert stats["recycle_cache_full"] > 0
    assert pool.outstanding() == 0
    assert len(pool.alloc_netmems(200)) == 200
    assert pool.get_stats()["alloc_refill"] == 1


def test_memory_of_another_node_is_waived():
    pool = make_pool(None)
    pool.area.record.nid = 1
    pool.put_netmem_bulk(pool.alloc_netmems(64))
    pool.record.nid = 0
    free = pool.area.free
    pool.alloc_netmems(1)
    assert pool.get_stats()["alloc_waive"] == 1
    assert pool.area.free == free + 1 - 64


def test_an_empty_provider_gives_fewer_and_no_error():
    pool = make_pool(bound_provider(size=10 * 4096))
    refs = pool.alloc_netmems(64)
    assert len(refs) == 10
    assert pool.alloc_netmem(4096) == (0, 0)
    assert pool.alloc_netmems(1).tolist() == []
    pool.put_full_netmem(refs)
    assert len(pool.alloc_netmems(64)) == 10


def test_put_of_what_is_not_held_is_refused():
    pool, other = make_pool(), make_pool()
    ref = int(pool.alloc_netmems(1)[0])
    with pytest.raises(NetmemError, match=r"not held|wrong pool"):
        other.put_netmem(ref)
    pool.put_netmem(ref)
    with pytest.raises(NetmemError, match=r"not held|double put"):
        pool.put_netmem(ref)
    assert pool.record.counters.dead == 1
    assert other.record.counters.foreign == 1
    assert pool.outstanding() == 0


def test_fragments_share_a_netmem_and_the_last_one_returns_it():
    pool = make_pool(bound_provider(rx_page_size=65536, size=1 << 20), order=4, max_len=65536)
    pieces = [pool.alloc_frag_netmem(4096) for _ in range(20)]
    assert [offset for _, offset in pieces[:16]] == [4096 * i for i in range(16)]
    assert len({ref for ref, _ in pieces[:16]}) == 1
    assert pieces[16][0] != pieces[0][0]
    for ref, _ in pieces[:16]:
        assert pool.outstanding() >= 1
        pool.put_netmem(ref)
    assert pool.get_stats()["recycle_ring"] == 1
    for ref, _ in pieces[16:]:
        pool.put_netmem(ref)
    assert pool.outstanding() == 0
    pool.destroy()
    assert pool.inflight() == 0


def test_adaptive_allocation_gives_the_whole_when_two_would_not_fit():
    pool = make_pool()
    (whole, at), (first, zero), (second, next_) = (pool.alloc_netmem(n) for n in (3000, 1000, 1000))
    assert (at, zero, next_) == (0, 0, 1024)
    assert whole != first == second
    with pytest.raises(NetmemError):
        pool.alloc_frag_netmem(5000)
    with pytest.raises(NetmemError):
        pool.alloc_netmem(0)


def test_fragment_ref_and_unref():
    pool = make_pool()
    ref = int(pool.alloc_netmems(1)[0])
    pool.fragment_netmem(ref, 3)
    assert pool.unref_netmem(ref) == 2
    pool.ref_netmem(ref, 2)
    assert pool.unref_netmem(ref, 3) == 1
    assert pool.unref_netmem(ref) == 0
    with pytest.raises(NetmemError):
        pool.unref_netmem(ref, 2)
    pool.put_netmem(ref)
    assert pool.outstanding() == 0
    with pytest.raises(NetmemError):
        pool.fragment_netmem(ref, 0)
    with pytest.raises(NetmemError):
        make_pool().ref_netmem(ref)


def test_destruction_waits_for_what_is_out_and_warns_when_the_device_is_gone(caplog):
    device, owner = Device(), Owner(bound_provider())
    pool = make_pool(owner.provider, dev=device, netdev=owner)
    refs = pool.alloc_netmems(5)
    pool.destroy(now=0)
    assert pool.inflight() == 5
    assert pool.alloc_netmems(1).tolist() == []
    with caplog.at_level(logging.WARNING):
        assert not pool.release_retry(61 * SEC)
        assert caplog.text == ""  # the device is still registered: the kernel hides it too
        owner.registered = False
        assert not pool.release_retry(122 * SEC)
        assert not pool.release_retry(123 * SEC)
    assert caplog.text.count("stalled pool shutdown") == 1
    assert "5 inflight" in caplog.text
    pool.put_full_netmem(refs)
    assert pool.release_retry(124 * SEC)
    assert owner.provider.pools == 0
    assert owner.provider.area.free == owner.provider.area.count


def test_pages_are_mapped_by_the_pool_and_unmapped_with_it():
    device = Device()
    pool = make_pool(dev=device)
    assert list(device.maps.values()) == [(256 * 4096, DmaDirection.FROM_DEVICE, False)]
    refs = pool.alloc_netmems(2)
    expected = [0x1000_0000 + 4096 * index_of(ref) for ref in refs.tolist()]
    assert pool.get_dma_addr_netmem(refs).tolist() == expected
    assert len(set(expected)) == 2
    pool.put_full_netmem(refs)
    pool.destroy()
    assert device.maps == {}
    unmapped = make_pool(flags=0)
    with pytest.raises(NetmemError):
        unmapped.get_dma_addr_netmem(int(unmapped.alloc_netmems(1)[0]))


def test_sync_for_cpu_checks_its_range():
    pool = make_pool()
    ref = int(pool.alloc_netmems(1)[0])
    pool.dma_sync_netmem_for_cpu(ref, 0, 4096)
    assert pool.record.counters.sync_cpu_noop == 1  # coherent: nothing to do
    for offset, size in ((0, 4097), (-1, 1), (4096, 1)):
        with pytest.raises(NetmemError):
            pool.dma_sync_netmem_for_cpu(ref, offset, size)


class SlowPool:
    """An obvious pool: lists and dictionaries, the same rules."""

    def __init__(self, ring):
        self.cache, self.ring, self.limit, self.count = [], [], ring, {}
        self.released = 0

    def took(self, ref):
        self.count[ref] = 1

    def put(self, ref, direct):
        if self.count.get(ref, 0) < 1:
            return False
        self.count[ref] -= 1
        if not self.count[ref]:
            if direct and len(self.cache) < 128:
                self.cache.append(ref)
            elif len(self.ring) < self.limit:
                self.ring.append(ref)
            else:
                self.released += 1
        return True

    def alloc(self):
        if not self.cache:
            self.cache, self.ring = self.ring[:64], self.ring[64:]
        return self.cache.pop() if self.cache else None


@given(st.lists(st.tuples(st.sampled_from("aprRd"), st.integers(0, 400)), max_size=300))
def test_pool_behaves_as_its_slow_twin(steps):
    pool = make_pool(bound_provider(size=400 * 4096), pool_size=32)
    slow = SlowPool(32)
    held = []
    for what, n in steps:
        if what == "a":
            expected = slow.alloc()
            refs = pool.alloc_netmems(1)
            if expected is None:
                if not len(refs):
                    continue
                slow.cache = list(pool.record.alloc.cache[: pool.record.alloc.count])
            else:
                assert refs.tolist() == [expected]
            slow.took(int(refs[0]))
            held.append(int(refs[0]))
        elif held:
            ref = held[n % len(held)]
            if what == "R":
                pool.ref_netmem(ref)
                slow.count[ref] += 1
            else:
                direct = what == "d"
                slow.put(ref, direct)
                pool.put_netmem(ref, allow_direct=direct)
                if not slow.count[ref]:
                    held.remove(ref)
    assert pool.record.alloc.count == len(slow.cache)
    assert pool.record.ring.producer - pool.record.ring.consumer == len(slow.ring)
    assert pool.outstanding() == len(held)
    assert pool.record.pages_state_release_cnt == slow.released
    netmems = pool.area.netmems()
    for ref in held:
        assert netmems["pp_ref_count"][index_of(ref)] == slow.count[ref]
        assert netmems["holder"][index_of(ref)] == Holder.DRIVER


@given(st.lists(st.integers(1, 4096), max_size=60))
def test_fragments_never_overlap(sizes):
    pool = make_pool(bound_provider(size=200 * 4096))
    taken = np.zeros((200, 4096), bool)
    for size in sizes:
        ref, offset = pool.alloc_netmem(size)
        assert ref
        row = taken[index_of(ref)]
        assert offset + size <= 4096
        assert not row[offset : offset + size].any()
        row[offset : offset + size] = True
