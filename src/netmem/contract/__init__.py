"""contract: the seven requirements of the kernel's netmem document, as data and as checks.

Answers to: Documentation/networking/netmem.rst, and to what a reviewer does with a conversion series.
May import: everything but cli. ``requirements`` alone imports nothing, so that checking C sources
needs neither NumPy nor Numba.
"""
