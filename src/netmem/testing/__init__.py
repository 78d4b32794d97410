"""testing: public helpers for tests of drivers and applications: wires, frames, two hosts and time.

Answers to: what a test bench with cables and a packet generator does.
May import: everything but cli.
Frames enter as bytes and leave as bytes; time moves only when told to.
"""

from netmem.base.extras import need

need("lab", __name__)
