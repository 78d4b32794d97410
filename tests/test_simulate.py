"""TCP over networks that lose, reorder, duplicate and damage: simulations, replay, goodput by loss rate."""

from __future__ import annotations

from pathlib import Path as File

import pytest

from conftest import scaled
from netmem.base.clock import MS
from netmem.base.jit import COMPILED
from netmem.inet.tcp.control import Control
from netmem.inet.tcp.tcb import TRANSITIONS, TcpState
from netmem.testing.simulate import Path, goodput_table, rough, simulate

RUNS = scaled(36)


@pytest.mark.parametrize("first", range(0, RUNS, max(RUNS // 6, 1)))
def test_no_byte_and_no_netmem_is_lost_on_rough_paths(first):
    """Ten connections each; `make simulate` runs a thousand of them. A seed that fails is in the message."""
    for seed in range(first, first + max(RUNS // 6, 1)):
        outcome = rough(seed, connections=10 if COMPILED else 2)
        assert not outcome.failed, f"seed {seed}: {outcome.failed}"


@pytest.mark.skipif(not COMPILED, reason="minutes of virtual time; the compiled run has them")
@pytest.mark.parametrize("seed", [471, 1342, 3556, 7955])
def test_seeds_that_found_something(seed):
    """A doubled SYN answered by a cookie and by a connection; a SYN that waited for its neighbour; a late FIN."""
    outcome = rough(seed)
    assert not outcome.failed, outcome.failed


def test_a_seed_replays_exactly():
    path = Path(loss=0.05, reorder=0.1, duplicate=0.05, delay=2 * MS)
    first, second = (simulate(42, path, up=scaled(200_000), connections=2) for _ in range(2))
    assert first == second
    assert first.link["lost"] > 0
    assert first != simulate(43, path, up=scaled(200_000), connections=2)


@pytest.mark.skipif(not COMPILED, reason="the table takes minutes uncompiled; the compiled run makes it")
def test_goodput_by_loss_rate_is_what_is_checked_in():
    table = (File(__file__).parent.parent / "docs" / "goodput.md").read_text()
    assert goodput_table() == table, "make it anew with: python -m netmem.testing.simulate --table"


def test_loss_is_mended_without_timeouts():
    """One loss in a hundred: RACK finds nearly all, probes find those at the tail."""
    outcome = simulate(1, Path(loss=0.01, delay=5 * MS), up=scaled(3_000_000), down=0)
    assert not outcome.failed
    if COMPILED:
        assert outcome.sender["retrans"] >= 10
        assert outcome.sender["rto"] <= 1
        assert outcome.sender["sack_in"] > 0
        assert outcome.receiver["ooo_queued"] > 0


def test_reordering_alone_is_not_taken_for_loss_again_and_again():
    path = Path(reorder=0.05, late=1 * MS, delay=5 * MS)
    outcome = simulate(2, path, up=scaled(3_000_000), down=0)
    assert not outcome.failed
    if COMPILED:  # the first time it cannot be told; after that the reordering window is wide enough
        assert outcome.sender["fast_retrans"] <= 3
        assert outcome.sender["retrans"] <= 20


def test_duplicates_are_reported_and_understood():
    outcome = simulate(3, Path(duplicate=0.3, delay=1 * MS), up=max(scaled(500_000), 60_000), down=0)
    assert not outcome.failed
    assert outcome.receiver["dsack_out"] > 0
    assert outcome.sender["dsack_in"] > 0
    assert outcome.sender["rto"] == 0


def test_every_change_of_state_is_in_the_table_of_rfc_9293(monkeypatch):
    """Whatever the network does: what the state machine enters is what the table allows."""
    seen = set()
    enter = Control.enter

    def noting(self, c, state):
        before = self.conns.tcbs[c].state
        if before != state:
            seen.add((before, state))
        enter(self, c, state)

    monkeypatch.setattr(Control, "enter", noting)
    for seed in range(scaled(10) + 2):
        assert not rough(seed, connections=3).failed
    assert seen <= set(TRANSITIONS), sorted(seen - set(TRANSITIONS))
    assert (TcpState.ESTABLISHED, TcpState.FIN_WAIT_1) in seen
    assert (TcpState.SYN_SENT, TcpState.ESTABLISHED) in seen
