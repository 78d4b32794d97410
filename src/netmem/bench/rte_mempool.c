/* SPDX-License-Identifier: Apache-2.0 */
/* Get and put of DPDK's rte_mempool in bulks of 64, for `netmem bench`: prints ns per object. */
#include <stdio.h>
#include <time.h>
#include <rte_eal.h>
#include <rte_mempool.h>

#define BULK 64
#define ROUNDS 200000

int main(int argc, char **argv)
{
	static void *objects[BULK];
	struct timespec start, end;
	struct rte_mempool *pool;

	if (rte_eal_init(argc, argv) < 0)
		return 1;
	pool = rte_mempool_create("bench", 8191, 64, 256, 0, NULL, NULL, NULL, NULL,
				  SOCKET_ID_ANY, 0);
	if (pool == NULL)
		return 1;
	for (int repeat = 0; repeat < 5; repeat++) {
		clock_gettime(CLOCK_MONOTONIC, &start);
		for (int i = 0; i < ROUNDS; i++) {
			if (rte_mempool_get_bulk(pool, objects, BULK) != 0)
				return 1;
			rte_mempool_put_bulk(pool, objects, BULK);
		}
		clock_gettime(CLOCK_MONOTONIC, &end);
		printf("%f\n", ((end.tv_sec - start.tv_sec) * 1e9 + (end.tv_nsec - start.tv_nsec)) /
				       ((double)ROUNDS * BULK));
	}
	return 0;
}
