"""The one helper that starts a process for a device: our own modules, or QEMU."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from netmem.base.errors import DeviceGoneError, NetmemError

START_DEADLINE_S = 30.0
COMPILE_DEADLINE_S = 300.0
MESSAGE_BYTES = 1 << 16
GONE = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)
PATIENT_S, LOADED_S = 5.0, 120.0  # who waits so long waits longer for a process that is at work


def raise_file_limit() -> None:
    """Let this process have as many descriptors as it may: a connection takes one or two."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class Process:
    """A device's process: ``argv`` with the descriptors named, in a session of its own.

    Ctrl-C in the terminal does not reach it first. What it writes to its standard error is kept.
    """

    def __init__(self, argv: Sequence[str], fds: Sequence[int] = ()) -> None:
        self._errors = tempfile.TemporaryFile()
        self._popen = subprocess.Popen(
            list(argv),
            pass_fds=list(fds),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            start_new_session=True,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # threads that would keep what main() drops
        )
        self.pid = self._popen.pid

    def how_it_ended(self) -> str:
        """What became of the process, and its last words, for a message."""
        code = self._popen.poll()
        if code is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._popen.wait(2.0)
        how = "closed its control socket"
        if code is not None:
            names = {int(one): one.name for one in signal.Signals}  # a real-time signal has none
            how = f"was ended by {names.get(-code, -code)}" if code < 0 else f"exited with {code}"
        return how + self.last_words()

    def last_words(self) -> str:
        """The last line the process wrote to its standard error, as a suffix for a message."""
        with contextlib.suppress(OSError, ValueError):
            self._errors.seek(0)
            lines = self._errors.read().decode(errors="replace").strip().splitlines()
            return f": {lines[-1]}" if lines else ""
        return ""

    def at_work(self) -> int:
        """Grows while the process runs or waits for a CPU (schedstat of its threads), ns."""
        total = 0
        with contextlib.suppress(OSError, ValueError):
            for task in os.listdir(f"/proc/{self.pid}/task"):
                with open(f"/proc/{self.pid}/task/{task}/schedstat") as file:
                    total += sum(map(int, file.read().split()[:2]))
        return total

    def has_ended(self) -> bool:
        """True once the process is gone."""
        return self._popen.poll() is not None

    def kill(self) -> None:
        """End the process at once, and wait until it is gone."""
        self._popen.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # in the kernel, or no CPU for it: it will go
            self._popen.wait(3.0)

    def end(self, grace: float) -> None:
        """Wait ``grace`` seconds for the process to end, then kill it."""
        try:
            self._popen.wait(grace)
        except subprocess.TimeoutExpired:
            self.kill()
        finally:
            self._errors.close()


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Signals that end a program wait until the block is over: what it starts is known by then."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[int, object]] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    held = {number: handler for number, handler in before.items() if callable(handler)}
    for number in held:
        signal.signal(number, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)
        for each, frame in came[:1]:
            held[signal.Signals(each)](each, frame)  # type: ignore[arg-type]


class Watchdog:
    """Kills a process that would not notice our end: a shell that waits for our end of a pipe."""

    def __init__(self, pid: int) -> None:
        self._popen = subprocess.Popen(
            ["/bin/sh", "-c", 'read line || kill -9 "$0"', str(pid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def dismiss(self) -> None:
        """Let the shell go without killing anything, before the process is waited for."""
        assert self._popen.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._popen.stdin.write(b"\n")
            self._popen.stdin.close()
        try:
            self._popen.wait(3.0)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(3.0)


class Child(Process):
    """One of our own modules as a device's process, and the control socket to it.

    The process gets ``argv`` plus ``--control-fd N`` and ends when the socket closes. It reports
    ``compiling`` (once, the start deadline then does not count) and ``ready``.
    """

    def __init__(self, argv: Sequence[str], fds: Sequence[int] = ()) -> None:
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._one_call = threading.Lock()
        self._calls = itertools.count(1)
        try:
            super().__init__([*argv, "--control-fd", str(theirs.fileno())], [theirs.fileno(), *fds])
        except OSError:
            self.sock.close()
            raise
        finally:
            theirs.close()

    def wait_ready(self) -> dict[str, Any]:
        """The child's ``ready`` message. NetmemError with its own words when it fails to start."""
        deadline = START_DEADLINE_S
        while True:
            message = self._receive(deadline, "start")
            if message.get("event") == "ready":
                return message
            if message.get("event") == "compiling":
                deadline = COMPILE_DEADLINE_S
            if "errno" in message:
                self.close()
                raise _error(message)

    def call(self, request: dict[str, Any], fds: Sequence[int] = (), timeout: float = 10.0) -> Any:
        """Send one request and return the answer's ``result``; refusals raise NetmemError.

        One call at a time; the answer to one that timed out is nobody's.
        """
        what, deadline = str(request.get("op")), time.monotonic() + timeout
        if not self._one_call.acquire(timeout=timeout):
            text = f"the device's process is busy: {what!r} waited {timeout:g} s"
            raise TimeoutError(errno.ETIMEDOUT, text)
        try:
            number = next(self._calls)
            try:
                socket.send_fds(self.sock, [json.dumps({**request, "id": number}).encode()], list(fds))
            except OSError as error:
                if error.errno in GONE or self.sock.fileno() < 0:
                    raise self._gone() from None
                text = f"{what!r} cannot be asked of the device's process: {error.strerror}"
                raise NetmemError(error.errno or errno.EIO, text) from None
            while True:
                answer = self._receive(max(0.0, deadline - time.monotonic()), what)
                if answer.get("id") == number:
                    break
        finally:
            self._one_call.release()
        if "errno" in answer:
            raise _error(answer)
        return answer.get("result")

    def _receive(self, timeout: float, what: str) -> dict[str, Any]:
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        before, end = self.at_work(), time.monotonic() + LOADED_S
        while not poll.poll(timeout * 1e3):
            now = self.at_work()
            if timeout >= PATIENT_S and now != before and time.monotonic() < end:
                before = now  # a loaded machine: it is at work, or waits for a CPU
                continue
            raise TimeoutError(
                errno.ETIMEDOUT, f"the device's process (pid {self.pid}) did not answer to {what!r} in time"
            )
        try:
            data = self.sock.recv(MESSAGE_BYTES)
        except OSError:
            data = b""
        if not data:
            raise self._gone()
        answer: dict[str, Any] = json.loads(data)
        return answer

    def _gone(self) -> DeviceGoneError:
        return DeviceGoneError(f"the NIC's process (pid {self.pid}) {self.how_it_ended()}")

    def is_alive(self) -> bool:
        """False once the process ended or closed its end."""
        if self.sock.fileno() < 0:
            return False
        poll = select.poll()
        poll.register(self.sock, 0)  # hang-up and errors are always reported
        return not poll.poll(0) and not self.has_ended()

    def close(self) -> None:
        """Close the control socket, which ends the child; kill it if it lingers."""
        self.sock.close()
        self.end(3.0)


def _error(message: dict[str, Any]) -> Exception:
    return NetmemError(int(message["errno"]), str(message["message"]))


def python_argv(module: str, *args: str) -> list[str]:
    """The arguments that run one of our modules with this interpreter; nothing of the current folder."""
    return [sys.executable, "-P", "-X", "faulthandler", "-m", module, *args]


class Control:
    """The child's end of the control socket: requests in, answers out."""

    def __init__(self, fd: int) -> None:
        self.sock = socket.socket(fileno=fd)
        self.sock.setblocking(False)

    def say(self, **message: Any) -> None:
        """Send an event or an answer."""
        with contextlib.suppress(OSError):
            self.sock.send(json.dumps(message).encode())

    def receive(self) -> tuple[dict[str, Any], list[int]] | None:
        """The next request and its descriptors, None when there is none; EOFError at the end."""
        try:
            data, fds, _, _ = socket.recv_fds(self.sock, MESSAGE_BYTES, 4)
        except BlockingIOError:
            return None
        except OSError:
            raise EOFError from None
        if not data:
            raise EOFError
        return json.loads(data), list(fds)


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors, whatever their state."""
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
