"""bench: what `netmem bench` measures, and the peers that it measures beside it.

Answers to: pktgen, iperf, and DPDK's and Coccinelle's own command lines.
May import: everything but cli.
Each figure is a median of rounds that alternate with those of what it stands beside.
"""

from netmem.base.extras import need

need("lab", __name__)
