"""An etcd cluster on this machine, for tests, benchmarks and trying out: all members on the loopback address, gone at the end."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..binding import bind
from ..errors import CoxlessError, StoreUnreachableError
from ..rank_process import leashed

_no_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))

READY_TIMEOUT = timedelta(seconds=60)
_MEMORY = Path("/dev/shm")  # no disk to wait for: what is measured on it says nothing about disks


def find_etcd() -> str | None:
    """The program: COXLESS_ETCD, else `etcd` on the path; None where there is none."""
    return shutil.which(os.environ.get("COXLESS_ETCD") or "etcd")


class LocalEtcd:
    """A cluster of so many members, in a `with` block. Its processes end with the thread that started them (Linux).

    arguments: further ones for every member.
    in_memory: keep the data in memory; else in the folder for temporary files.

    Raises CoxlessError where the program is not installed.
    """

    def __init__(
        self, members: int = 1, *, arguments: tuple[str, ...] = (), scheme: str = "http", in_memory: bool = True
    ) -> None:
        program = find_etcd()
        if program is None:
            raise CoxlessError("etcd is not installed (Debian's package is etcd-server), and COXLESS_ETCD names no program")
        self._program = program
        self._arguments = arguments
        self._scheme = scheme
        self._data = Path(tempfile.mkdtemp(prefix="coxless-etcd-", dir=_MEMORY if in_memory and _MEMORY.is_dir() else None))
        # Bound, but never listening: nobody else is given the ports of a member that is down.
        self._reserved = [bind("127.0.0.1", 0) for _ in range(2 * members)]
        ports = [socket.getsockname()[1] for socket in self._reserved]
        self.ports: list[int] = ports[:members]
        self._peer_ports: list[int] = ports[members:]
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * members

    def address(self, run: str, options: str = "", *, login: str = "") -> str:
        """Where a store finds the run; `options` without their question mark."""
        members = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        return f"etcd://{login and login + '@'}{members}/{run}" + (f"?{options}" if options else "")

    # --- members, by their number from 0

    def start(self) -> None:
        """Start those that do not run, and wait until the cluster serves. Raises StoreUnreachableError."""
        for number in range(len(self._processes)):
            self.start_member(number)
        self.await_leader()

    def start_member(self, number: int) -> None:
        """Start it, or start it again with the data it had. It takes part a moment later."""
        process = self._processes[number]
        if process is not None and process.poll() is None:
            return
        peers = ",".join(f"m{n}=http://127.0.0.1:{port}" for n, port in enumerate(self._peer_ports))
        mine, peer = f"{self._scheme}://127.0.0.1:{self.ports[number]}", f"http://127.0.0.1:{self._peer_ports[number]}"
        command = [self._program, "--name", f"m{number}", "--data-dir", str(self._data / f"m{number}"), "--log-level", "warn"]
        command += ["--listen-client-urls", mine, "--advertise-client-urls", mine]
        command += [
            "--listen-peer-urls",
            peer,
            "--initial-advertise-peer-urls",
            peer,
            "--initial-cluster",
            peers,
            *self._arguments,
        ]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
        with (self._data / f"m{number}.log").open("ab") as log:
            self._processes[number] = subprocess.Popen(
                leashed(command), env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self, number: int) -> None:
        """SIGKILL."""
        process = self._processes[number]
        if process is not None:
            process.kill()
            process.wait()

    def pause(self, number: int) -> None:
        """SIGSTOP: it accepts what the kernel accepts for it, and answers nothing."""
        self._signal(number, signal.SIGSTOP)

    def resume(self, number: int) -> None:
        self._signal(number, signal.SIGCONT)

    def _signal(self, number: int, what: signal.Signals) -> None:
        process = self._processes[number]
        if process is not None and process.poll() is None:
            process.send_signal(what)

    def pid(self, number: int) -> int:
        """Process id of a member. RuntimeError before its first start."""
        process = self._processes[number]
        if process is None:
            raise RuntimeError(f"member {number} has not been started")
        return process.pid

    def leader(self) -> int | None:
        """The number of the member that says that it leads; None when none does, or answers."""
        for number in range(len(self._processes)):
            status = self._status(number)
            if status is not None and status.get("leader", "0") == status["header"]["member_id"]:
                return number
        return None

    def await_leader(self, *, other_than: int | None = None) -> int:
        """The leader's number once there is one. Raises StoreUnreachableError after a minute."""
        deadline = time.monotonic() + READY_TIMEOUT.total_seconds()
        while (leader := self.leader()) is None or leader == other_than:
            if time.monotonic() > deadline:
                raise StoreUnreachableError(
                    f"etcd has no leader after {READY_TIMEOUT.total_seconds():g} s; its last words: {self._last_words()}"
                )
            time.sleep(0.05)
        return leader

    def _status(self, number: int) -> dict[str, Any] | None:
        """What the member says of itself, None when it does not answer. Over HTTP: who has used gRPC cannot be forked any more."""
        process = self._processes[number]
        if process is None or process.poll() is not None:
            return None
        ask = urllib.request.Request(f"http://127.0.0.1:{self.ports[number]}/v3/maintenance/status", data=b"{}")
        try:
            with _no_proxy.open(ask, timeout=0.5) as answer:
                status: dict[str, Any] = json.load(answer)
                return status
        except (OSError, ValueError):
            return None

    def _last_words(self) -> str:
        lines = [line for log in sorted(self._data.glob("*.log")) for line in log.read_text(errors="replace").splitlines()[-1:]]
        return "; ".join(lines) or "none"

    # --- the end

    def close(self) -> None:
        """Kill the members and remove their data."""
        for number in range(len(self._processes)):
            self.kill(number)
        for socket in self._reserved:
            socket.close()
        shutil.rmtree(self._data, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"LocalEtcd({len(self._processes)} members at {','.join(map(str, self.ports))})"
