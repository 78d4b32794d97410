"""Signals that end a verb: one exception, one line, and the exit status that shells expect."""

from __future__ import annotations

import os
import signal
import sys
import threading

AGAIN_S = 0.01
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def endings() -> list[signal.Signals]:
    """The signals that are to end a verb here."""
    nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in ENDING if not (nohup and number == signal.SIGHUP)]


class Interrupted(BaseException):
    """A signal asked the verb to end. ``detail``: what is unfinished because of it, for the message."""

    def __init__(self, number: int) -> None:
        self.number, self.detail = number, ""
        super().__init__(number)

    def __str__(self) -> str:
        name = signal.Signals(self.number).name
        return f"interrupted by {name}" + (f": {self.detail}" if self.detail else "")

    @property
    def status(self) -> int:
        """Exit status: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP."""
        return 128 + self.number


def exit_on_signals() -> None:
    """Have such a signal end the process at once, with one line: while modules are imported."""

    def leave(number: int, frame: object) -> None:
        os.write(2, f"netmem: {Interrupted(number)}\n".encode())
        os._exit(128 + number)

    for number in endings():
        signal.signal(number, leave)


def raise_on_signals() -> None:
    """Have the first such signal raise Interrupted, and the second end the process as by default.

    SIGHUP stays ignored where the parent had us ignore it (nohup); SIGINT does not, which every shell has
    what it starts in the background ignore. One that comes while Python takes an object apart, where
    exceptions are lost, comes again.
    """
    main, numbers, before = threading.main_thread(), endings(), sys.unraisablehook

    def interrupt(number: int, frame: object) -> None:
        for each in ENDING:
            if signal.getsignal(each) == interrupt:
                signal.signal(each, signal.SIG_DFL)
        raise Interrupted(number)

    def lost(unraisable: sys.UnraisableHookArgs) -> None:
        if not isinstance(stop := unraisable.exc_value, Interrupted):
            before(unraisable)
            return
        handle()
        assert main.ident is not None
        again = threading.Timer(AGAIN_S, signal.pthread_kill, (main.ident, stop.number))
        again.daemon = True
        again.start()

    def handle() -> None:
        for number in numbers:
            signal.signal(number, interrupt)

    handle()
    sys.unraisablehook = lost
