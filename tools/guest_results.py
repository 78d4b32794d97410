"""guest_results.py TABLE TARGET: the table of `netmem guest test ... --format markdown` as a document."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

from netmem.base.commit import commit_at_hand

day = datetime.date.today().isoformat()
head = f"""# Results of `netmem guest test`

Made by `netmem guest test devmem zcrx faults` ({commit_at_hand()}, {day}).
`limit`: what cannot be done on gve, or what the kernel is known not to survive;
[guest.md](guest.md) tells more.

"""
table = Path(sys.argv[1]).read_text()
Path(sys.argv[2]).write_text(head + table)
