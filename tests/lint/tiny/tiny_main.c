// SPDX-License-Identifier: Apache-2.0
#include "tiny.h"

static int tiny_make_pools(struct tiny_queue *q)
{
	struct page_pool_params pp = {
		.flags = TINY_PP_FLAGS,
		.pool_size = TINY_RING,
		.nid = NUMA_NO_NODE,
		.dev = q->priv->dev,
		.netdev = q->priv->netdev,
		.queue_idx = q->index,
		.max_len = PAGE_SIZE,
	};
	struct page_pool *pool;

	pool = page_pool_create(&pp);
	if (IS_ERR(pool))
		return PTR_ERR(pool);
	q->head_pool = pool;

	if (q->priv->split_on) {
		pp.flags |= PP_FLAG_ALLOW_UNREADABLE_NETMEM;
		pool = page_pool_create(&pp);
		if (IS_ERR(pool))
			return PTR_ERR(pool);
	} else {
		page_pool_get(pool);
	}
	q->page_pool = pool;
	return 0;
}

static int tiny_poll(struct napi_struct *napi, int budget)
{
	struct tiny_queue *q = container_of(napi, struct tiny_queue, napi);

	return tiny_rx_poll(q, budget);
}

static int tiny_open(struct net_device *netdev)
{
	struct tiny_priv *priv = netdev_priv(netdev);
	int i, err;

	for (i = 0; i < 4; i++) {
		struct tiny_queue *q = &priv->rx[i];

		err = tiny_make_pools(q);
		if (err)
			return err;
		netif_napi_add(netdev, &q->napi, tiny_poll);
		err = tiny_rx_refill(q);
		if (err)
			return err;
	}
	return 0;
}

static const struct net_device_ops tiny_ops = {
	.ndo_open = tiny_open,
};

static int tiny_queue_start(struct net_device *netdev, struct netdev_queue_config *config, void *memory, int index)
{
	struct tiny_priv *priv = netdev_priv(netdev);

	return tiny_rx_refill(&priv->rx[index]);
}

static const struct netdev_queue_mgmt_ops tiny_queue_ops = {
	.ndo_queue_start = tiny_queue_start,
};

void tiny_setup(struct net_device *netdev)
{
	netdev->netdev_ops = &tiny_ops;
	netdev->ethtool_ops = &tiny_ethtool_ops;
	netdev->queue_mgmt_ops = &tiny_queue_ops;
}
