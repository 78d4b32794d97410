"""docs/guest.md's program, as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "guest.md"


def test_the_program_of_the_page_runs():
    (program,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=115)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "rx_" in done.stdout  # the counters, at the end
