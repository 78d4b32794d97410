"""cli: the `netmem` command, one file a verb.

Answers to: ethtool, ynl and nc, as far as a receiver of device memory needs them.
May import: everything below.
Arguments enter, tables and JSON leave; errors are one line each.
"""
