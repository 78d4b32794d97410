"""A Linux guest whose NICs are ours: QEMU, device models in a process beside it, Debian's packages.

Imports base, hw and lab. Nothing here needs root.
"""
