// SPDX-License-Identifier: Apache-2.0
#include "tiny.h"

static int tiny_fill_head(struct tiny_queue *q, unsigned int i)
{
	struct page *page = page_pool_dev_alloc_pages(q->head_pool);

	if (!page)
		return -ENOMEM;
	q->heads[i].page = page;
	q->heads[i].dma = page_pool_get_dma_addr(page);
	return 0;
}

int tiny_rx_refill(struct tiny_queue *q)
{
	unsigned int i;

	for (i = 0; i < TINY_RING; i++) {
		struct tiny_buf *buf = &q->bufs[i];
		netmem_ref netmem;

		if (tiny_fill_head(q, i))
			return -ENOMEM;
		netmem = page_pool_dev_alloc_netmems(q->page_pool);
		if (!netmem)
			return -ENOMEM;
		buf->netmem = netmem;
		buf->dma = page_pool_get_dma_addr_netmem(netmem);
		q->ring[i].addr = cpu_to_le64(tiny_buf_dma(buf));
		q->ring[i].head = cpu_to_le64(q->heads[i].dma);
	}
	return 0;
}

static bool tiny_readable(const struct tiny_buf *buf)
{
	return !netmem_is_net_iov(buf->netmem);
}

static void tiny_add_frag(struct tiny_queue *q, struct sk_buff *skb, struct tiny_buf *buf, u32 len)
{
	page_pool_dma_sync_netmem_for_cpu(q->page_pool, buf->netmem, buf->offset, len);
	skb_add_rx_frag_netmem(skb, skb_shinfo(skb)->nr_frags, buf->netmem, buf->offset, len, PAGE_SIZE);
	buf->netmem = 0;
}

static struct sk_buff *tiny_head_skb(struct tiny_queue *q, struct tiny_head *head, u32 len)
{
	void *va = page_address(head->page);
	struct sk_buff *skb;

	dma_sync_single_for_cpu(q->priv->dev, head->dma, len, DMA_FROM_DEVICE);
	prefetch(va);
	skb = napi_build_skb(va, PAGE_SIZE);
	if (skb)
		skb_mark_for_recycle(skb);
	return skb;
}

int tiny_rx_poll(struct tiny_queue *q, int budget)
{
	int done = 0;

	while (done < budget) {
		struct tiny_buf *buf = &q->bufs[done];
		u32 len = le32_to_cpu(q->ring[done].len);
		struct sk_buff *skb;

		skb = tiny_head_skb(q, &q->heads[done], 128);
		if (!skb) {
			page_pool_put_full_netmem(q->page_pool, buf->netmem, true);
			continue;
		}
		if (tiny_readable(buf))
			prefetch(netmem_address(buf->netmem));
		tiny_add_frag(q, skb, buf, len);
		napi_gro_receive(&q->napi, skb);
		done++;
	}
	return done;
}
