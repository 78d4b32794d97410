"""The running kernel's netmem: what it tells over netlink."""
