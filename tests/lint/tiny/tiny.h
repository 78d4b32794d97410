/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TINY_H
#define TINY_H

#include <linux/netdevice.h>
#include <net/page_pool/helpers.h>

#define TINY_RING		256
#define TINY_PP_FLAGS		(PP_FLAG_DMA_MAP | PP_FLAG_DMA_SYNC_DEV)

struct tiny_buf {
	union {
		netmem_ref netmem;
		struct page *page;
	};
	dma_addr_t dma;
	unsigned int offset;
	unsigned int bias;
};

struct tiny_queue {
	struct tiny_priv *priv;
	struct page_pool *page_pool;
	struct page_pool *head_pool;
	struct tiny_buf bufs[TINY_RING];
	struct tiny_buf spare;
	struct tiny_head {
		struct page *page;
		dma_addr_t dma;
	} heads[TINY_RING];
	struct tiny_desc *ring;
	struct napi_struct napi;
	struct bpf_prog *xdp_prog;
	unsigned int index;
};

struct tiny_priv {
	struct net_device *netdev;
	struct device *dev;
	struct tiny_queue rx[4];
	bool split_on;
	bool fancy;
};

struct tiny_desc {
	__le64 addr;
	__le64 head;
	__le32 len;
};

int tiny_rx_refill(struct tiny_queue *q);
int tiny_rx_poll(struct tiny_queue *q, int budget);
extern const struct ethtool_ops tiny_ethtool_ops;

static inline dma_addr_t tiny_buf_dma(const struct tiny_buf *buf)
{
	return buf->dma + buf->offset;
}

#endif
