"""A driver with a deliberate mistake, built from the kernel's own source: each is seen by what is there for it.

The source is edited in place by rules, and never kept.
"""

from __future__ import annotations

import re

import pytest

from conftest import HW, say
from netmem.lab.guest import sources
from netmem.lab.guest.config import GuestConfig
from netmem.lab.guest.prepare import build_module
from netmem.lab.guest.scripts import program

pytestmark = pytest.mark.timeout(600)


def test_an_unchanged_driver_is_good(driver, prepared):
    for lab in driver.boot(prepared, GuestConfig(iommu=True)):
        lab.run("ping -c 2 -i 0.2 -q $REMOTE_V4")
        lab.run(program("ncdevmem-bind"))
        lab.run(sources.POOLS)
        lab.clean()


def test_an_address_used_after_unmap_is_stopped(driver, prepared):
    """The linear part of a packet is unmapped as soon as it was mapped."""
    driver.insert(
        "gve_tx_dqo.c", r"addr = dma_map_single\(tx->dev, skb->data, len, DMA_TO_DEVICE\);\n",
        "\t\tdma_unmap_single(tx->dev, addr, len, DMA_TO_DEVICE);\n",
    )  # fmt: skip
    for lab in driver.boot(prepared, GuestConfig(iommu=True)):
        lab.guest.run("ping -c 2 -i 0.2 -W 1 -q $REMOTE_V4")
        faults = lab.guest.dma_faults()
        assert faults
        assert "transmit queue" in faults[0]
        assert "DMA read" in faults[0]


def test_an_address_outside_of_every_mapping_is_stopped(driver, prepared):
    """Receive buffers are posted a page pool's length beyond where they are."""
    driver.replace(
        "gve_buffer_mgmt_dqo.c",
        r"cpu_to_le64\(buf_state->addr \+",
        "cpu_to_le64(buf_state->addr + (1ULL << 40) +",
    )
    for lab in driver.boot(prepared, GuestConfig(iommu=True)):
        assert lab.guest.run("ping -c 1 -W 1 -q $REMOTE_V4").status != 0
        faults = lab.guest.dma_faults()
        assert faults
        assert "DMA write" in faults[0]
        assert "nothing is mapped there" in faults[0]


def test_a_page_where_memory_is_unreadable_is_told(driver, prepared):
    """The driver prefetches the page of every buffer, without asking whether it has one."""
    driver.replace(
        "gve_rx_dqo.c", r"if \(!netmem_is_net_iov\(buf_state->page_info\.netmem\)\)\n(\s+prefetch)", r"\1"
    )
    for lab in driver.boot(prepared, GuestConfig()):
        lab.run("ping -c 2 -i 0.2 -q $REMOTE_V4")
        lab.clean()  # nothing to be seen with ordinary memory
        lab.guest.run(f"PATH={HW}:$PATH\n" + program("ncdevmem-receive"), 200)
        assert any("WARNING" in line for line in lab.guest.complaints), lab.guest.complaints


def test_a_netmem_that_is_lost_is_found(driver, prepared):
    """Every hundredth refill takes one netmem too many, and forgets it."""
    driver.insert(
        "gve_buffer_mgmt_dqo.c", r"static int gve_alloc_from_page_pool\([^{]*\{\n\tnetmem_ref netmem;\n",
        "\tstatic unsigned int taken;\n\tif (!(++taken % 100))\n"
        "\t\t(void)page_pool_dev_alloc_netmems(rx->dqo.page_pool);\n",
    )  # fmt: skip
    for lab in driver.boot(prepared, GuestConfig()):
        lab.run("ping -c 2 -i 0.2 -q $REMOTE_V4")  # traffic stays right
        said = lab.guest.run(sources.POOLS)
        assert said.status == 1
        assert re.search(r"pool \d+ holds [1-9]\d* netmems", said.text), said.text
        assert lab.guest.complaints == []  # the kernel says nothing of it


@pytest.mark.parametrize("synced", [True, False])
def test_a_missing_sync_is_seen_through_bounce_buffers(driver, prepared, synced):
    if not synced:
        driver.insert("gve_rx_dqo.c", r"static void gve_dma_sync\([^{]*\{\n", "\treturn;\n")
        driver.insert("Makefile", r"(?m)\Z", "\nccflags-y += -Wno-declaration-after-statement -Wno-unused\n")
    for lab in driver.boot(prepared, GuestConfig(bounce=True)):
        done = lab.guest.run("ping -c 3 -i 0.3 -W 1 -q $REMOTE_V4")
        assert (done.status == 0) == synced, done.text


def test_a_module_that_does_not_compile_is_one_line(driver):
    driver.insert("gve_rx_dqo.c", r"#include \"gve\.h\"\n", "#error made on purpose\n")
    with pytest.raises(OSError, match="made on purpose"):
        build_module(say, "", driver.folder)
