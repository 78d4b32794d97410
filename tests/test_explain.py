"""`netmem explain`: every rule by itself and in its order, and predictions against the running kernel."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from conftest import need
from netmem.base.errors import NetmemError
from netmem.kernel import state
from netmem.kernel.explain import Tried, attempt, explain
from netmem.kernel.rules import AROUND, BIND_RX, Ask, Rule, Verdict
from netmem.kernel.state import DeviceState, KernelState, QueueState, device_state, kernel_state
from test_kernel import NETMEM, family, veth

__all__ = ["family", "veth"]  # fixtures

DOCUMENT = Path(__file__).parents[1] / "docs" / "kernel.md"
KERNEL = KernelState("7.3.4", True, True, True, 4096, {"udmabuf": True})
DEVICE = DeviceState(
    name="eth0", ifindex=2, driver="gve", up=True, rx_queues=4, queue_mgmt=True, queue_mgmt_why="so it has",
    dma=True, dma_why="PCI device", tcp_data_split="enabled", hds_thresh=None, xdp="",
)  # fmt: skip
GOOD = Ask(KERNEL, DEVICE, 1)


def kernel(**changes):
    return lambda ask: replace(ask, kernel=replace(ask.kernel, **changes))


def device(**changes):
    return lambda ask: replace(ask, device=replace(ask.device, **changes))


def queue(**changes):
    return lambda ask: replace(ask, device=replace(ask.device, queues={1: QueueState(**changes)}))


# In the kernel's order: what breaks a rule, and the errno that ../netdev-genl.c and the others give.
BREAKS = [
    (kernel(netdev_family=False), "EOPNOTSUPP"),
    (kernel(net_admin=False), "EPERM"),
    (lambda ask: replace(ask, rx_page_size=2048), "ERANGE"),
    (lambda ask: replace(ask, rx_page_size=5000), "EINVAL"),
    (device(rx_queues=1), "EINVAL"),
    (device(dma=False), "EOPNOTSUPP"),
    (kernel(devmem=False), "EOPNOTSUPP"),
    (queue(leased=True), "EBUSY"),
    (device(queue_mgmt=False), "EOPNOTSUPP"),
    (device(tcp_data_split="disabled"), "EINVAL"),
    (device(hds_thresh=1), "EINVAL"),
    (device(xdp="drv"), "EEXIST"),
    (queue(provider="dmabuf", binding=3), "EEXIST"),
    (queue(xsk=True), "EBUSY"),
]


NO_DMA, LEASED = 5, 7


def test_what_keeps_all_rules_is_accepted():
    found = explain(GOOD)
    assert found.refused is None
    split, driver = found.unknown  # whether that was set, and whether the driver is willing
    assert split.rule.text == "tcp-data-split is enabled"
    assert driver.rule is BIND_RX[-1]
    assert all(one.verdict is Verdict.HOLDS for one in found.around if "header split" not in one.rule.text)


@pytest.mark.parametrize("number", range(len(BREAKS)))
def test_each_rule_by_itself(number):
    change, wanted = BREAKS[number]
    found = explain(change(GOOD))
    assert found.refused is not None
    assert found.refused.rule.error == wanted
    assert found.refused.why
    assert sum(one.verdict is Verdict.REFUSES for one in found.findings) == 1


@given(st.sets(st.integers(0, len(BREAKS) - 1), min_size=1))
def test_the_first_that_is_broken_decides(numbers):
    """But for a leased queue of a device without DMA: that one's lease leads to a device that has it."""
    assume(not {NO_DMA, LEASED} <= numbers)
    ask = GOOD
    for number in sorted(numbers, reverse=True):
        ask = BREAKS[number][0](ask)
    first = min(numbers)
    alone = explain(BREAKS[first][0](GOOD)).refused
    found = explain(ask).refused
    assert found is not None
    assert alone is not None
    assert found.rule is alone.rule


@pytest.mark.parametrize("change", [
    device(queue_mgmt=None), device(dma=None), kernel(devmem=None), kernel(exporters={}),
    kernel(exporters={"udmabuf": False}), device(up=False),
    lambda ask: replace(ask, rx_page_size=16384),
    lambda ask: replace(kernel(release="7.2.12+deb13")(ask), rx_page_size=4096),
])  # fmt: skip
def test_what_is_not_known_is_said(change):
    found = explain(change(GOOD))
    assert found.refused is None
    assert len(found.unknown) >= 2 + (change(GOOD).device.up is True)
    assert all(one.why for one in found.unknown)


def test_bound_memory_excludes():
    found = explain(replace(GOOD, device=replace(DEVICE, queues={3: QueueState("io_uring")})))
    refused = {one.rule.text: one for one in found.around if one.verdict is Verdict.REFUSES}
    assert len(refused) == 5
    assert "fewer than 5" in refused["channels can be made fewer"].why


@pytest.mark.parametrize(
    ("tried", "ask", "agrees"),
    [
        (Tried(0, "", "udmabuf"), GOOD, True),
        (Tried(22, "", "udmabuf"), GOOD, None),  # the driver's own
        (Tried(9, "", ""), GOOD, True),
        (Tried(0, "", "udmabuf"), device(xdp="drv")(GOOD), False),
        (Tried(17, "", "udmabuf"), device(xdp="drv")(GOOD), True),
        (Tried(9, "", ""), device(xdp="drv")(GOOD), True),  # it comes behind the memory
        (Tried(9, "", ""), device(rx_queues=1)(GOOD), False),
        (Tried(95, "", "udmabuf"), device(queue_mgmt=None, xdp="drv")(GOOD), None),
    ],
)
def test_what_a_try_tells(tried, ask, agrees):
    assert tried.agrees(explain(ask)) is agrees


def rows(rules: tuple[Rule, ...]) -> str:
    lines = ["| rule | else | said by |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {r.text} | {r.error} | {r.source} |" for r in rules)]) + "\n"


@pytest.mark.parametrize(("mark", "rules"), [("rules", BIND_RX), ("around", AROUND)])
def test_the_document_has_the_rules(mark, rules):
    text = DOCUMENT.read_text().split(f"<!-- {mark}: begin -->\n")[1].split(f"<!-- {mark}: end -->")[0]
    assert text == rows(rules)


# -- the running kernel -----------------------------------------------------------------------------


def run(*words, inside=(), **more):
    command = [*inside, *NETMEM, "explain", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, **more)


def test_predictions_on_this_kernel_come_true(family):
    kernel = kernel_state()
    names = [name for name in state.device_names() if not device_state(name, kernel).queue_mgmt]
    assert "lo" in names
    for name in names:
        found = explain(Ask(kernel, device_state(name, kernel), 0))
        assert attempt(found.ask).agrees(found), name
        assert found.refused is not None


def test_a_device_of_another_namespace(family, veth):
    inside = ["ip", "netns", "exec", veth]
    done = run("v0:0", "--try", inside=inside)
    assert done.returncode == 1
    assert done.stdout.startswith("v0: veth, up, 3 receive queues; Linux ")
    assert "queue 0: EOPNOTSUPP: no device is below it" in done.stdout
    assert "tried: EOPNOTSUPP" in done.stdout
    assert "; as predicted" in done.stdout
    beyond = json.loads(run("v0:7", "--json", inside=inside).stdout)
    (one,) = beyond["devices"][0]["queues"]
    assert one["refused"] == "EINVAL"
    everything = run("v0", inside=inside)
    assert "queues 0, 1, 2: EOPNOTSUPP" in everything.stdout
    last = run("v9", inside=inside).stderr.splitlines()[-1]  # other tests' receivers may be mentioned
    assert last == "netmem: there is no device v9 in this network namespace [ENODEV]"


def test_without_privileges_everything_is_read_as_well(family):
    need(shutil.which("setpriv"), "setpriv is of util-linux")
    done = run("lo", "--json", inside=["setpriv", "--bounding-set=-all", "--inh-caps=-all"])
    (one,) = json.loads(done.stdout)["devices"][0]["queues"]
    assert one["refused"] == "EPERM"
    verdicts = {rule["rule"]: rule["verdict"] for rule in one["rules"]}
    assert verdicts["the kernel has CONFIG_NET_DEVMEM"] == "ok" or kernel_state().devmem is not True


def test_json_and_usage(family):
    document = json.loads(run("lo:0", "--json").stdout)
    assert document["schema"] == "netmem.explain/1"
    (queue,) = document["devices"][0]["queues"]
    assert set(queue) == {"queue", "refused", "rules", "around"}
    assert [rule["rule"] for rule in queue["rules"]] == [rule.text for rule in BIND_RX]
    names = [one["name"] for one in json.loads(run("--json").stdout)["devices"]]
    assert "lo" in names
    for status, words, why in (
        (2, ["--try"], "--try and --pid need DEVICE:QUEUE"), (2, ["lo", "--try"], "--try needs DEVICE:QUEUE"),
        (2, ["lo:x"], "is the number of a queue"), (1, ["lo", "--pid", "1"], "process 1 has no device lo"),
    ):  # fmt: skip
        done = run(*words)
        assert done.returncode == status
        assert why in done.stderr
        assert done.stderr.count("\n") == 1


def test_names_of_functions_tell_who_restarts_queues(tmp_path, monkeypatch):
    (tmp_path / "kallsyms").write_text(
        "0 t gve_rx_queue_mem_alloc\t[gve]\n0 t igb_open\t[igb]\n0 d netkit_queue_mgmt_ops\n"
        "0 t e1000_open\t[e1000e]\n0 T net_devmem_bind_dmabuf\n"
    )
    monkeypatch.setattr(state, "PROC", tmp_path)
    assert state.queue_mgmt("gve", "gve", state.kernel_symbols())[0] is True
    assert state.queue_mgmt("igb", "igb", state.kernel_symbols())[0] is False
    assert state.queue_mgmt("netkit", "", state.kernel_symbols())[0] is True
    assert (
        state.queue_mgmt("virtio_net", "", state.kernel_symbols())[0] is None
    )  # built in, as something that does it
    (tmp_path / "kallsyms").write_text("0 T start\n")
    assert state.queue_mgmt("virtio_net", "", state.kernel_symbols())[0] is False
    (tmp_path / "kallsyms").write_text("")
    assert state.queue_mgmt("gve", "gve", state.kernel_symbols())[0] is None
    (tmp_path / "kallsyms").unlink()
    assert state.queue_mgmt("gve", "gve", state.kernel_symbols())[0] is None


@pytest.mark.process
def test_a_device_of_ours(compiled):
    from netmem.base.ethtool import TcpDataSplit
    from netmem.lab.device import open_device
    from netmem.lab.own import own_device
    from netmem.memory.providers.dmabuf import DmabufProvider

    with open_device() as device:
        name = device.dev.name
        found = own_device(name, os.getpid())
        assert found is not None
        refused = explain(Ask(*found, 1)).refused
        with pytest.raises(NetmemError) as error:
            device.bind_rx([1], DmabufProvider(1 << 20))
        assert refused is not None
        assert refused.rule.errno == error.value.errno
        assert "TcpDataSplit.ENABLED" in refused.cure
        device.ethtool.set_ringparam(tcp_data_split=TcpDataSplit.ENABLED)
        device.bind_rx([1], DmabufProvider(1 << 20))
        found = own_device(name, os.getpid())
        assert found is not None
        assert explain(Ask(*found, 0)).refused is None
        refused = explain(Ask(*found, 1)).refused
        assert refused is not None
        assert refused.rule.error == "EEXIST"
        done = run(f"{name}:1", "--pid", str(os.getpid()))
        assert "queue 1: EEXIST: dma-buf, binding" in done.stdout
