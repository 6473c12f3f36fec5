"""The store as a process of its own: a TCPStore server that no rank's death can take along."""

import argparse
import contextlib
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from .address import TcpAddress
from .binding import AddressError, bind, listen, reachable
from .errors import CoxlessError, StoreUnreachableError
from .output import RotatingFile
from .torch_environment import quiet_torch

logger = logging.getLogger(__name__)

STOP_GRACE = timedelta(seconds=5)
# Importing torch is most of it; a cold disk can take long.
READY_TIMEOUT = timedelta(seconds=90)


def serve(host: str = "127.0.0.1", port: int = 0, *, log_file: Path | None = None, until_stdin_closes: bool = False) -> None:
    """Run a store server in this process until SIGTERM or SIGINT; for the main thread of a process of its own.

    It listens on exactly `host` (0.0.0.0: every IPv4 address of the machine, ::: every IPv6 one); port 0 means any free one. When it serves, one line of JSON
    says so on stdout: {"event": "ready", "host": …, "port": …, "pid": …}.

    The server's C++ side writes a stack trace to stderr for each odd client, from its event loop; were stderr a pipe that nobody drains,
    the whole store would freeze. So stderr goes to `log_file` once the server
    runs (with what is older in log_file.1, and both bounded), or nowhere. `until_stdin_closes`: stop also when
    stdin ends, that is when the parent that holds the other end dies, however it dies.

    Raises AddressError when the address cannot be had.
    """
    # Blocked and waited for instead of handled: a handler could run at any point, also inside the lock that it needs. Threads of torch
    # inherit this, so the signals stay with the main thread.
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    listener = bind(host, port)  # before torch is imported: a wrong address is told at once
    port = listener.getsockname()[1]
    quiet_torch()
    _allow_many_clients()
    with _stderr_to(log_file):
        store = listen(listener, host)
        print(json.dumps({"event": "ready", "host": host, "port": port, "pid": os.getpid()}), flush=True)
        if until_stdin_closes:
            threading.Thread(target=_stop_when_stdin_ends, name="coxless-parent", daemon=True).start()
        signal.sigwait(signals)
        del store


def _stop_when_stdin_ends() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def _stderr_to(log_file: Path | None) -> Iterator[None]:
    """Point descriptor 2 at the file, or at nothing; put it back afterwards, so that a last error can be told."""
    drain = None
    if log_file is None:
        target = os.open(os.devnull, os.O_WRONLY)
    else:
        try:
            file = RotatingFile(log_file)
        except OSError as error:
            raise CoxlessError(f"cannot write the log file {log_file}: {error.strerror}") from None
        source, target = os.pipe()
        drain = threading.Thread(target=file.fill_from, args=(source,), name="coxless-log", daemon=True)
        drain.start()
    sys.stderr.flush()
    saved = os.dup(2)
    os.dup2(target, 2)
    os.close(target)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        if drain is not None:
            drain.join(1.0)


def _allow_many_clients() -> None:
    """As many descriptors as this process may have: a client that says nothing keeps one for as long as it likes."""
    if sys.platform == "win32":
        return
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # a hard limit that is none: then it stays as it is
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class StoreServer:
    """A store server that runs as a child of this process. It stops when the block is left, or when this process dies."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0, *, log_file: Path | None = None) -> None:
        """Reserve the address; nothing runs yet. Raises AddressError."""
        # Bound, but never listening: while the server is down, no other program, and no outgoing connection either, is given its port.
        self._reservation = bind(host, port)
        self.host = host
        self.port: int = self._reservation.getsockname()[1]
        self._log_file = log_file
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Where clients on this machine connect to, as "host:port"."""
        return str(TcpAddress(reachable(self.host) if self.host in ("0.0.0.0", "::") else self.host, self.port))

    @property
    def pid(self) -> int:
        """Process id of the server; that of the last one when it has ended. RuntimeError before the first start."""
        if self._process is None:
            raise RuntimeError("the store server has not been started")
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the server's process lives."""
        return self._process is not None and self._process.poll() is None

    def start(self, *, timeout: timedelta = READY_TIMEOUT) -> None:
        """Start the server, or start it again (empty) on the same port, and wait until it serves.

        Raises AddressError when something else has the port, StoreUnreachableError when it did not come up in time.
        """
        if self.running:
            return
        environment = dict(os.environ)
        quiet_torch(environment)
        command = [
            sys.executable,
            "-c",
            "from coxless.server import main; main()",
        ]  # -m would run a module that __init__ may have imported
        command += ["--host", self.host, "--port", str(self.port), "--until-stdin-closes"]
        if self._log_file is not None:
            command += ["--log-file", str(self._log_file)]
        # A session of its own: Ctrl-C in the terminal reaches this process only, and the store outlives the ranks' last words.
        # The pipe to its stdin tells it when this process dies; PR_SET_PDEATHSIG would already fire when the starting *thread* ends.
        process = subprocess.Popen(
            command,
            env=environment,
            start_new_session=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._close_pipes()
        self._process = process
        try:
            ready = _first_line(process, timeout)
        except BaseException:
            self.kill()
            raise
        if ready is None:
            self.kill()
            raise StoreUnreachableError(f"the store server at {self.address} was not ready within {timeout.total_seconds():g} s")
        if not ready:
            assert process.stderr is not None
            last = process.stderr.read().decode(errors="replace").strip().rpartition("\n")[2].removeprefix("coxless: ")
            code = process.wait()
            raise (AddressError if code == ADDRESS_ERROR else StoreUnreachableError)(
                last or f"the store server ended with {code} at its start"
            )
        assert process.stderr is not None
        process.stderr.close()  # the server has let go of it by now

    def stop(self) -> None:
        """SIGTERM, and SIGKILL when that takes more than a few seconds; then it has ended."""
        if self.running:
            assert self._process is not None
            self._process.terminate()
            self._process.send_signal(signal.SIGCONT)  # a stopped process would not see it
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_GRACE.total_seconds())
        self.kill()

    def kill(self) -> None:
        """SIGKILL, as a crash of the store would be; the port stays reserved for `start`."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._close_pipes()

    def abort_start(self) -> None:
        """Have a `start` that goes on in another thread fail."""
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """Stop the server and give the port back."""
        self.stop()
        self._reservation.close()

    def _close_pipes(self) -> None:
        if self._process is not None:
            for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"StoreServer({self.address}, {'running' if self.running else 'down'})"


def start_server(
    host: str = "127.0.0.1", port: int = 0, *, log_file: Path | None = None, timeout: timedelta = READY_TIMEOUT
) -> StoreServer:
    """A running store server in a process of its own, to be used in a `with` block.

    Raises AddressError when the address cannot be had, StoreUnreachableError when the server is not up within `timeout`.
    """
    server = StoreServer(host, port, log_file=log_file)
    try:
        server.start(timeout=timeout)
    except BaseException:
        server.close()
        raise
    return server


def _first_line(process: subprocess.Popen[bytes], timeout: timedelta) -> bytes | None:
    """The first line on its stdout, empty if it ended without one, None when the time is over."""
    assert process.stdout is not None
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=lambda pipe: lines.put(pipe.readline()), args=(process.stdout,), daemon=True).start()
    try:
        return lines.get(timeout=timeout.total_seconds())
    except queue.Empty:
        return None


ADDRESS_ERROR = 3


def main() -> None:
    """The process that `StoreServer` starts. Exit code 3: the address cannot be had."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--log-file", type=Path)
    parser.add_argument("--until-stdin-closes", action="store_true")
    given = parser.parse_args()
    try:
        serve(given.host, given.port, log_file=given.log_file, until_stdin_closes=given.until_stdin_closes)
    except CoxlessError as error:
        print(f"coxless: {error}", file=sys.stderr)
        sys.exit(ADDRESS_ERROR if isinstance(error, AddressError) else 1)
