// R6 as a semantic patch sees it: an address from the pool, or from a field that it was put into, synced raw.
@direct@
expression d, p, l;
identifier sync =~ "^dma_sync_.*_for_cpu$";
@@
* sync(d, <+... \( page_pool_get_dma_addr(p) \| page_pool_get_dma_addr_netmem(p) \) ...+>, l, ...)

@local@
expression d, p, l;
identifier a;
identifier sync =~ "^dma_sync_.*_for_cpu$";
@@
 a = <+... \( page_pool_get_dma_addr(p) \| page_pool_get_dma_addr_netmem(p) \) ...+>;
 ...
* sync(d, <+... a ...+>, l, ...)
