// SPDX-License-Identifier: Apache-2.0
#include "tiny.h"

static void tiny_get_ringparam(struct net_device *netdev, struct ethtool_ringparam *ring,
			       struct kernel_ethtool_ringparam *kernel_ring, struct netlink_ext_ack *extack)
{
	struct tiny_priv *priv = netdev_priv(netdev);

	kernel_ring->tcp_data_split = priv->split_on ? ETHTOOL_TCP_DATA_SPLIT_ENABLED :
						       ETHTOOL_TCP_DATA_SPLIT_DISABLED;
}

static int tiny_set_ringparam(struct net_device *netdev, struct ethtool_ringparam *ring,
			      struct kernel_ethtool_ringparam *kernel_ring, struct netlink_ext_ack *extack)
{
	struct tiny_priv *priv = netdev_priv(netdev);

	priv->split_on = kernel_ring->tcp_data_split == ETHTOOL_TCP_DATA_SPLIT_ENABLED;
	return 0;
}

const struct ethtool_ops tiny_ethtool_ops = {
	.supported_ring_params = ETHTOOL_RING_USE_TCP_DATA_SPLIT,
	.get_ringparam = tiny_get_ringparam,
	.set_ringparam = tiny_set_ringparam,
};
