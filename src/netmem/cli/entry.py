"""Entry point of the `netmem` command: signals first, so that one in the first moment is one line, too."""

from __future__ import annotations

import os
import sys

from netmem.cli.signals import Interrupted, raise_on_signals


def main() -> None:
    """Run the command line."""
    try:
        raise_on_signals()
        # Nothing here multiplies matrices: NumPy's threads would only keep privileges that we drop.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        from netmem.cli.main import main as run

        run()
    except Interrupted as stop:
        print(f"netmem: {stop}", file=sys.stderr)
        sys.exit(stop.status)


if __name__ == "__main__":
    main()
