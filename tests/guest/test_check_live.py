"""`netmem check --live` on gve: the kernel's own passes, and of drivers with one mistake each the right verdict.

The source is edited in place by rules, described here in our words, and never kept.
"""

from __future__ import annotations

import os

import pytest

from conftest import Driver, say
from netmem.contract import report
from netmem.contract.live import guest
from netmem.lab.guest.config import GuestConfig
from netmem.lab.guest.prepare import build_module

pytestmark = pytest.mark.timeout(600)
UNUSED = "\nccflags-y += -Wno-declaration-after-statement -Wno-unused -Wno-unused-function\n"


def own_index(driver: Driver) -> None:
    """Every pool is made for queue 0."""
    driver.replace("gve_buffer_mgmt_dqo.c", r"pp\.queue_idx = rx->q_num;", "pp.queue_idx = 0;")


def not_created(driver: Driver) -> None:
    """The device is not told of a queue that is restarted."""
    driver.replace("gve_main.c", r"err = gve_adminq_create_single_rx_queue\(priv, idx\);", "err = 0;")


def deaf(driver: Driver) -> None:
    """Turning header split on is taken, and nothing is done."""
    driver.insert("gve_main.c", r"int gve_set_hsplit_config\([^{]*\{\n", "\tif (1)\n\t\treturn 0;\n")


def not_told(driver: Driver) -> None:
    """The driver says that it splits; the device is never told."""
    driver.replace("gve_adminq.c", r"if \(priv->header_split_enabled\)", "if (0)")


def wrong_offset(driver: Driver) -> None:
    """What a frag says of the place within a netmem that is no page is off by eight."""
    driver.replace(
        "gve_rx_dqo.c",
        r"(skb_add_rx_frag_netmem\([^;]*?netmem,\s*)buf_state->page_info\.page_offset \+",
        r"\1buf_state->page_info.page_offset + 8 * netmem_is_net_iov(buf_state->page_info.netmem) +",
    )


def never_unreadable(driver: Driver) -> None:
    """PP_FLAG_ALLOW_UNREADABLE_NETMEM is not set."""
    driver.replace("gve_buffer_mgmt_dqo.c", r"pp\.flags \|= PP_FLAG_ALLOW_UNREADABLE_NETMEM;", ";")


def no_sync_flag(driver: Driver) -> None:
    """PP_FLAG_DMA_SYNC_DEV is not set."""
    driver.replace("gve_buffer_mgmt_dqo.c", r"PP_FLAG_DMA_MAP \| PP_FLAG_DMA_SYNC_DEV", "PP_FLAG_DMA_MAP")


def prefetched(driver: Driver) -> None:
    """The page of every buffer is prefetched, without asking whether it has one."""
    driver.replace(
        "gve_rx_dqo.c", r"if \(!netmem_is_net_iov\(buf_state->page_info\.netmem\)\)\n(\s+prefetch)", r"\1"
    )


def looked_at(driver: Driver) -> None:
    """The first byte of small payload is read, wherever it lies."""
    driver.insert(
        "gve_rx_dqo.c", r"static int gve_rx_append_frags\([^{]*\{\n",
        "\tif (rx->dqo.page_pool && buf_len < 64)\n"
        "\t\tREAD_ONCE(*(u8 *)buf_state->page_info.page_address);\n",
    )  # fmt: skip


def not_synced(driver: Driver) -> None:
    """Nothing is synced for the CPU."""
    driver.insert("gve_rx_dqo.c", r"static void gve_dma_sync\([^{]*\{\n", "\treturn;\n")


def forgotten(driver: Driver) -> None:
    """Every hundredth refill takes one netmem too many, and forgets it."""
    driver.insert(
        "gve_buffer_mgmt_dqo.c", r"static int gve_alloc_from_page_pool\([^{]*\{\n\tnetmem_ref netmem;\n",
        "\tstatic unsigned int taken;\n\tif (!(++taken % 100))\n"
        "\t\t(void)page_pool_dev_alloc_netmems(rx->dqo.page_pool);\n",
    )  # fmt: skip


def kept(driver: Driver) -> None:
    """A reference of its own on one netmem in fifty, which is never given up."""
    driver.insert(
        "gve_rx_dqo.c", r"static void gve_skb_add_rx_frag\([^{]*\{\n",
        "\tstatic unsigned int seen;\n\tif (rx->dqo.page_pool && !(++seen % 50))\n"
        "\t\tpage_pool_ref_netmem(buf_state->page_info.netmem);\n",
    )  # fmt: skip


def unmapped(driver: Driver) -> None:
    """What is sent is unmapped by the driver when it was sent, though its binding has mapped it."""
    driver.replace(
        "gve_tx_dqo.c", r"netmem_dma_unmap_addr_set\(skb_frag_netmem\(frag\), pkt,", "dma_unmap_addr_set(pkt,"
    )


BREAKS = {
    own_index: "R1", not_created: "R1", deaf: "R2", not_told: "R2", wrong_offset: "R3", never_unreadable: "R4",
    no_sync_flag: "R4", prefetched: "R5", looked_at: "R5", not_synced: "R6", forgotten: "R7", kept: "R7",
    unmapped: "TX1",
}  # fmt: skip


def outcomes(prepared, modules=()) -> dict[str, report.Verdict]:
    found = guest.run(lambda config: prepared.start(config, modules), GuestConfig())
    for one in found:
        print(one.requirement, one.check, one.outcome, one.by, one.evidence)
    return {one.requirement: one for one in report.verdicts(found)}


def test_the_kernels_own_driver_passes(prepared):
    found = outcomes(prepared)
    assert {one.outcome for one in found.values()} == {report.PASS}
    assert len(found) == 9


@pytest.mark.skipif("CI" in os.environ, reason="a minute each: make guest-verify")
@pytest.mark.parametrize("change", BREAKS, ids=lambda change: change.__name__)
def test_a_mistake_fails_its_requirement(driver, prepared, change):
    change(driver)
    driver.insert("Makefile", r"(?m)\Z", UNUSED)
    found = outcomes(prepared, build_module(say, "", driver.folder))
    failed = {one.requirement for one in found.values() if one.outcome == report.FAIL}
    assert failed == {BREAKS[change]}
