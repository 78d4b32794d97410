"""providers: the kinds of memory that can be bound to a queue, one file each.

Answers to: net/core/devmem.c (dmabuf), mm/page_alloc.c (pages), drivers/dma-buf (exporters).
May import: base, memory.
An area of netmem leaves here for a page pool; the application maps the memory by descriptor.
"""
