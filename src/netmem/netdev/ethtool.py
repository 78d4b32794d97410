"""ethtool settings with the kernel's refusals (net/ethtool/rings.c, channels.c, ioctl.c)."""

from __future__ import annotations

import errno
from dataclasses import asdict, replace
from typing import Any

from netmem.base.errors import NetmemError
from netmem.base.ethtool import SteeringRule, TcpDataSplit, switch
from netmem.netdev.driver import CoalesceOps, CoalesceParams
from netmem.netdev.queues import RxQueues

# A fixed key: hash and so queue of a flow are the same in every run.
RSS_KEY = bytes.fromhex("6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa")
INDIRECTION = 128
MAX_RULES = 32
SETTABLE = ("rx_pending", "tx_pending", "rx_buf_len", "tcp_data_split", "hds_thresh")


class Ethtool:
    """Rings, channels, RSS and steering rules of one device."""

    def __init__(self, rxqs: RxQueues) -> None:
        self._rxqs = rxqs
        self.key = RSS_KEY
        self.indirection: list[int] | None = None  # None: spread evenly over all queues
        self.rules: dict[int, SteeringRule] = {}
        self.features: frozenset[str] = frozenset()

    def apply(self) -> None:
        """Write RSS and rules to a device that has just been opened; features come before its queues."""
        self._apply_rxfh()
        self._rxqs.driver.set_rules(list(self.rules.values()))

    # -- rings --------------------------------------------------------------------------------

    def set_ringparam(self, **changes: Any) -> None:
        """ethtool -G: ``rx_pending``, ``tx_pending``, ``rx_buf_len``, ``tcp_data_split``, ``hds_thresh``.

        ``tcp_data_split``: "on", "off", "auto", or a TcpDataSplit. ERANGE for values no device can have;
        EOPNOTSUPP for a parameter that the driver cannot set; EINVAL when a bound provider needs the split
        on and the threshold 0, and beyond the driver's limits. Nothing happens when nothing changes.
        """
        unknown = set(changes) - set(SETTABLE)
        if unknown:
            raise NetmemError(errno.EINVAL, f"no such ring parameter: {', '.join(sorted(unknown))}")
        if changes.get("tcp_data_split") is not None:
            changes["tcp_data_split"] = TcpDataSplit.of(changes["tcp_data_split"])
        if changes.get("rx_buf_len", 1) <= 0:
            raise NetmemError(errno.ERANGE, "rx-buf-len: integer out of range")
        with self._rxqs.lock:
            self._rxqs.check_present()
            for name in changes:
                if name not in self._rxqs.driver.supported_ring_params:
                    raise NetmemError(errno.EOPNOTSUPP, f"{self._rxqs.driver.name} cannot set {name}")
            new = replace(self._rxqs.ring, **changes)
            if new == self._rxqs.ring:
                return
            if any(queue.mp_params for queue in self._rxqs.queues):
                if new.tcp_data_split != TcpDataSplit.ENABLED:
                    raise NetmemError(
                        errno.EINVAL, "can't disable tcp-data-split while a memory provider is bound"
                    )
                if new.hds_thresh:
                    raise NetmemError(
                        errno.EINVAL, "can't set non-zero hds-thresh while a memory provider is bound"
                    )
            if new.hds_thresh > self._rxqs.driver.hds_thresh_max:
                raise NetmemError(
                    errno.EINVAL, f"hds-thresh {new.hds_thresh} exceeds {self._rxqs.driver.hds_thresh_max}"
                )
            self._rxqs.driver.set_ringparam(new)
            old, self._rxqs.ring = self._rxqs.ring, new
            try:
                for queue in self._rxqs.queues if self._rxqs.running else ():
                    self._rxqs.restart(queue)
            except BaseException:
                self._rxqs.ring = old
                self._rxqs.driver.set_ringparam(old)
                for queue in self._rxqs.queues:
                    self._rxqs.restart(queue)
                raise

    # -- coalescing ---------------------------------------------------------------------------

    def _coalesce_ops(self) -> CoalesceOps:
        driver = self._rxqs.driver
        if not isinstance(driver, CoalesceOps):
            raise NetmemError(errno.EOPNOTSUPP, f"{driver.name} has no interrupt coalescing to set")
        return driver

    def get_coalesce(self) -> CoalesceParams:
        """ethtool -c. EOPNOTSUPP where the driver has none."""
        with self._rxqs.lock:
            self._rxqs.check_present()
            return self._coalesce_ops().get_coalesce()

    def set_coalesce(self, **changes: Any) -> None:
        """ethtool -C: ``rx_usecs``, ``use_adaptive_rx`` ("on", "off", or a bool).

        EOPNOTSUPP where the driver has none, ERANGE for what no device can have, EINVAL beyond its limits.
        """
        with self._rxqs.lock:
            self._rxqs.check_present()
            ops = self._coalesce_ops()
            if unknown := sorted(set(changes) - {"rx_usecs", "use_adaptive_rx"}):
                raise NetmemError(errno.EINVAL, f"no such coalescing parameter: {', '.join(unknown)}")
            if not 0 <= changes.get("rx_usecs", 0) < 1 << 32:
                raise NetmemError(errno.ERANGE, "rx-usecs: integer out of range")
            if "use_adaptive_rx" in changes:
                changes["use_adaptive_rx"] = switch("adaptive-rx", changes["use_adaptive_rx"])
            ops.set_coalesce(replace(ops.get_coalesce(), **changes))

    # -- features -----------------------------------------------------------------------------

    def set_features(self, **changes: bool | str) -> None:
        """ethtool -K: turn features "on" and "off"; ``rx_gro_hw`` merges segments in the NIC.

        True and False will do. Queues restart, since buffer sizes follow.

        EOPNOTSUPP for one that the driver does not have (NETIF_F_GRO_HW of hw_features).
        """
        with self._rxqs.lock:
            for name in changes:
                if name not in self._rxqs.driver.hw_features:
                    raise NetmemError(errno.EOPNOTSUPP, f"{self._rxqs.driver.name} has no feature {name}")
            on = {name for name, wanted in changes.items() if switch(name, wanted)}
            features = (self.features - set(changes)) | on
            if features == self.features:
                return
            self.features = features
            if self._rxqs.running:
                self._rxqs.driver.set_features(self.features)
                for queue in self._rxqs.queues if self._rxqs.driver.queue_mgmt_ops else ():
                    self._rxqs.restart(queue)

    # -- channels -----------------------------------------------------------------------------

    def set_channels(self, rx: int) -> None:
        """ethtool -L rx N: EINVAL while RSS, a rule or a provider uses a queue that would go.

        With a provider on queue i the kernel asks for more than i + 1 queues, one more than needed;
        so does this.
        """
        with self._rxqs.lock:
            if not 1 <= rx <= self._rxqs.driver.max_rx_queues:
                raise NetmemError(errno.EINVAL, f"rx channels {rx}: 1 to {self._rxqs.driver.max_rx_queues}")
            if self.indirection is not None and rx <= max(self.indirection):
                raise NetmemError(
                    errno.EINVAL, "requested channel counts are too low for the indirection table"
                )
            if any(rule.queue >= rx for rule in self.rules.values()):
                raise NetmemError(errno.EINVAL, "requested channel counts are too low for an ntuple filter")
            bound = [queue.index + 1 for queue in self._rxqs.queues if queue.mp_params]
            if bound and rx <= max(bound) and rx != len(self._rxqs.queues):
                raise NetmemError(
                    errno.EINVAL, f"requested channel counts are too low for memory provider ({max(bound)})"
                )
            self._apply_rxfh(min(rx, len(self._rxqs.queues)))  # no flow may lead to a queue that goes
            self._rxqs.set_count(rx)
            self._apply_rxfh()

    # -- RSS and rules ------------------------------------------------------------------------

    def set_rxfh_indir(self, queues: list[int] | None) -> None:
        """ethtool -X: spread flows over ``queues`` in turn; None: over all."""
        with self._rxqs.lock:
            if queues is not None and (
                not queues or any(not 0 <= q < len(self._rxqs.queues) for q in queues)
            ):
                raise NetmemError(errno.EINVAL, f"the table names queues that are not there: {queues}")
            self.indirection = queues
            self._apply_rxfh()

    def _apply_rxfh(self, count: int | None = None) -> None:
        queues = self.indirection or list(range(count or len(self._rxqs.queues)))
        if self._rxqs.running:
            self._rxqs.driver.set_rxfh(self.key, [queues[i % len(queues)] for i in range(INDIRECTION)])

    def add_rule(self, rule: SteeringRule) -> int:
        """ethtool -N: add an exact-match rule and return its id.

        ENOSPC when the table is full; EOPNOTSUPP, ENOSPC, EINVAL as the driver has it.
        """
        with self._rxqs.lock:
            self._rxqs.check_present()
            if not 0 <= rule.queue < len(self._rxqs.queues):
                raise NetmemError(errno.EINVAL, f"rule names queue {rule.queue}, which is not there")
            if len(self.rules) >= MAX_RULES:
                raise NetmemError(errno.ENOSPC, f"the rule table holds {MAX_RULES} rules")
            rule_id = next(i for i in range(MAX_RULES) if i not in self.rules)
            if self._rxqs.running:
                self._rxqs.driver.set_rules([*self.rules.values(), rule])
            self.rules[rule_id] = rule
            return rule_id

    def delete_rule(self, rule_id: int) -> None:
        """ethtool -N delete: ENOENT when there is no such rule."""
        with self._rxqs.lock:
            if self.rules.pop(rule_id, None) is None:
                raise NetmemError(errno.ENOENT, f"no steering rule {rule_id}")
            if self._rxqs.running:
                self._rxqs.driver.set_rules(list(self.rules.values()))

    def describe(self) -> dict[str, Any]:
        """ethtool -g, as names and values."""
        return {**asdict(self._rxqs.ring), "tcp_data_split": self._rxqs.ring.tcp_data_split.name.lower()}
