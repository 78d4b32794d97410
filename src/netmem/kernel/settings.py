"""Settings of a device of the kernel's, made with ethtool's calls and undone at the end.

The names are those of ``netmem.netdev.ethtool``. Each setting is noted (``journal``) before it is made;
undoing one leaves alone what somebody else has set since.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from netmem.base.errors import NetmemError
from netmem.base.ethtool import SteeringRule, TcpDataSplit, switch
from netmem.kernel.ethtool_family import EthtoolFamily
from netmem.kernel.ethtool_ioctl import EthtoolIoctl, Rule
from netmem.kernel.journal import Entry, Journal, left_behind, undo_all

T = TypeVar("T")
PROTOS = {6: "tcp", 17: "udp"}
PATIENCE_S = 2.0  # for the kernel to end what a process had bound that is gone


class KernelEthtool:
    """Settings of device ``name``. Errors: the kernel's errno; EPERM without CAP_NET_ADMIN.

    ``undone``: what an earlier process had left behind, as one line each.
    """

    def __init__(self, name: str, ifindex: int) -> None:
        self.name, self._ifindex = name, ifindex
        self._family, self._ioctl = EthtoolFamily(), EthtoolIoctl(name)
        self._journal: Journal | None = None
        self.split_was_on = False  # it was asked for, and the driver had it on
        self.undone = self._recover()

    def _recover(self) -> list[str]:
        done = []
        for _, entries in left_behind(self.name, self._ifindex):
            before, end = entries[:], time.monotonic() + PATIENCE_S
            # What its binding forbids is forbidden until the kernel has ended that.
            while undo_all(entries, self._undo) and time.monotonic() < end:
                time.sleep(0.05)
            done += [_text(entry) for entry in before if entry not in entries]
        return done

    # -- settings -------------------------------------------------------------------------------

    def set_ringparam(self, **changes: int | str) -> None:
        """``ethtool -G``: tcp_data_split ("on"), hds_thresh, and what else the family knows (rx, tx).

        EINVAL, EOPNOTSUPP: the kernel's.
        """
        have = self._family.rings_get(self._ifindex)
        if "tcp_data_split" in changes:
            changes["tcp_data_split"] = TcpDataSplit.of(changes["tcp_data_split"])
        wanted = changes.get("tcp_data_split")
        self.split_was_on = wanted == TcpDataSplit.ENABLED == have.get("tcp_data_split")
        after = {name: int(value) for name, value in changes.items() if have.get(name) != int(value)}
        if not after:
            return
        before = {name: have[name] for name in after if name in have}
        self._made({"setting": "rings", "before": before, "after": after},
                   lambda: self._family.rings_set(self._ifindex, **after))  # fmt: skip

    def ask_for_split_again(self) -> bool:
        """Off and on, where split was asked for and the driver said that it was on: true when it was done.

        A driver may leave split on that is "auto" to the kernel (``ethtool -G eth0 tcp-data-split auto``).
        The kernel then takes asking for it as no change, and refuses to bind memory: nobody asked for it.
        """
        if not self.split_was_on:
            return False
        self.split_was_on = False
        for value in (TcpDataSplit.DISABLED, TcpDataSplit.ENABLED):
            self._family.rings_set(self._ifindex, tcp_data_split=int(value))
        return True

    def ringparam(self) -> dict[str, int]:
        """``ethtool -g``: what the driver tells, by the names of ``set_ringparam``."""
        return self._family.rings_get(self._ifindex)

    def set_rxfh_indir(self, queues: Iterable[int]) -> None:
        """``ethtool -X``: spread flows over these queues alone, in turn. EOPNOTSUPP; EINVAL."""
        queues, before = list(queues), self._ioctl.rxfh_indir()
        if not len(before) or not queues:
            code = errno.EINVAL if len(before) else errno.EOPNOTSUPP
            raise NetmemError(code, f"{self.name}: flows cannot be spread over queues {queues}")
        after = np.resize(np.array(queues, np.uint32), len(before))
        if (after != before).any():
            entry = {"setting": "rxfh", "before": before.tolist(), "after": after.tolist()}
            self._made(entry, lambda: self._ioctl.set_rxfh_indir(after))

    def set_features(self, **changes: bool | str) -> None:
        """``ethtool -K``: ntuple, which flow rules need. EOPNOTSUPP for others."""
        for name, on in changes.items():
            if name != "ntuple":
                raise NetmemError(errno.EOPNOTSUPP, f"{name} is not a feature that is set here: ntuple is")
            on = switch(name, on)
            if self._ioctl.ntuple() != on:
                entry = {"setting": "ntuple", "before": not on, "after": on}
                self._made(entry, functools.partial(self._ioctl.set_ntuple, on))

    def add_rule(self, rule: SteeringRule) -> int:
        """``ethtool -N``: flows to a port, over IPv4 and, where the driver can, IPv6, to a queue.

        The location of the IPv4 rule. EOPNOTSUPP for rules of addresses.
        """
        if rule.src_ip or rule.dst_ip or rule.src_port or not rule.dst_port or rule.proto not in PROTOS:
            text = "rules for a destination port of TCP or UDP are all that is made here"
            raise NetmemError(errno.EOPNOTSUPP, text)
        proto = PROTOS[rule.proto]
        location = self._add(Rule(proto, 4, rule.dst_port, rule.queue))
        with contextlib.suppress(NetmemError):  # IPv6 where it can be had
            self._add(Rule(proto, 6, rule.dst_port, rule.queue))
        return location

    def _add(self, rule: Rule) -> int:
        """Where it will be is known afterwards only: what is noted before is found again by what it says."""
        known = set(self._ioctl.rules()[1])
        entry: Entry = {"setting": "rule", "before": sorted(known), "after": [*vars(rule).values()]}
        return self._made(entry, lambda: self._ioctl.add_rule(rule))

    def delete_rule(self, location: int) -> None:
        """Delete a rule that ``add_rule`` made."""
        self._ioctl.delete_rule(location)

    # -- undoing ----------------------------------------------------------------------------------

    def _made(self, entry: Entry, make: Callable[[], T]) -> T:
        if self._journal is None:
            self._journal = Journal(self.name, self._ifindex)
        self._journal.note(entry)
        try:
            return make()
        except NetmemError:  # refused; a signal in the middle leaves it noted, since it may have been set
            self._journal.forget(entry)
            raise

    def _undo(self, entry: Entry) -> None:
        """Undo one setting, where it is still as it was made."""
        before, after = entry.get("before"), entry.get("after")
        match entry.get("setting"):
            case "rings" if isinstance(before, dict) and isinstance(after, dict):
                have = self._family.rings_get(self._ifindex)
                changes = {name: value for name, value in before.items() if have.get(name) == after.get(name)}
                if changes:
                    self._family.rings_set(self._ifindex, **changes)
            case "rxfh" if isinstance(before, list):
                if self._ioctl.rxfh_indir().tolist() == after:
                    self._restore_rxfh(np.array(before, np.uint32))
            case "ntuple" if isinstance(before, bool):
                if self._ioctl.ntuple() == after:
                    self._ioctl.set_ntuple(before)
            case "rule" if isinstance(before, list) and isinstance(after, list):
                for location in self._ioctl.rules()[1]:
                    rule = self._ioctl.rule(location)
                    if location not in before and rule is not None and [*vars(rule).values()] == after:
                        self._ioctl.delete_rule(location)

    def _restore_rxfh(self, before: npt.NDArray[np.uint32]) -> None:
        """The default is told to be that: a table that somebody set stands in the way of fewer channels."""
        if (before == np.arange(len(before)) % (before.max() + 1)).all():
            self._ioctl.set_rxfh_indir(before[:0])
            if (self._ioctl.rxfh_indir() == before).all():
                return
        self._ioctl.set_rxfh_indir(before)

    def close(self) -> None:
        """Undo everything, and what others had left behind; the first error comes at the end."""
        failed: list[NetmemError] = []
        journal, self._journal = self._journal, None
        if journal is not None:
            failed = journal.undo(self._undo)
            self._recover()  # what the kernel refuses at first it may allow when a binding has ended
        self._family.close()
        self._ioctl.close()
        if failed and journal is not None and journal.path.exists():
            error = failed[0]
            left = f"{self.name} keeps a setting that could not be undone, until it is opened again"
            raise NetmemError(error.errno or errno.EIO, f"{left}: {error.strerror}")


def _text(entry: Entry) -> str:
    """A setting, for people."""
    match entry:
        case {"setting": "rings", "after": dict(after)}:
            return ", ".join(f"{name.replace('_', '-')} {value}" for name, value in after.items())
        case {"setting": "rule", "after": [proto, version, port, queue]}:
            return f"{proto}{version} port {port} to queue {queue}"
        case {"setting": "ntuple", "after": bool(after)}:
            return f"ntuple-filters {'on' if after else 'off'}"
        case {"setting": "rxfh", "after": list(after)}:
            return f"flows over queues {', '.join(map(str, sorted(set(after))))}"
    return "something unknown"
