"""Entry point of the `netmem` command: signals first, so that one in the first moment is one line, too."""

import os
import sys


def main() -> None:
    """Run the command line."""
    try:
        from netmem.cli.signals import Interrupted, exit_on_signals

        exit_on_signals()
    except KeyboardInterrupt:  # while Python imports its own modules for that
        print("netmem: interrupted by SIGINT", file=sys.stderr)
        sys.exit(130)
    try:
        # Nothing here multiplies matrices: NumPy's threads would only keep privileges that we drop.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        from netmem.cli.main import main as run

        run()
    except Interrupted as stop:
        print(f"netmem: {stop}", file=sys.stderr)
        sys.exit(stop.status)


if __name__ == "__main__":
    main()
