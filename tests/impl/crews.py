"""Crews of threads (one connection each) and of processes on a real store server, for tests."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import coxless
from coxless import Crew

QUICK: dict[str, Any] = {
    "heartbeat_interval": timedelta(milliseconds=200),
    "heartbeat_timeout": timedelta(seconds=2),
    "join_timeout": timedelta(seconds=30),
    "timeout": timedelta(seconds=60),
}


def in_threads(size: int, body: Callable[[int], object]) -> list[object]:
    """Run body(rank) for each rank in a thread of its own; returns what each returned, or raises what the first one raised."""
    results: list[object] = [None] * size
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = body(rank)
        except BaseException as error:  # noqa: BLE001  (raised again below)
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive(), "a rank hangs"
    if errors:
        raise errors[0]
    return results


def stopped(pid: int) -> None:
    """Stop a process, and wait until it has: SIGSTOP takes its time."""
    os.kill(pid, signal.SIGSTOP)
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.01)


def crew_of(address: str, rank: int, size: int, **options: Any) -> Crew:
    return coxless.join(address, rank=rank, world_size=size, **{**QUICK, **options})


class Process:
    """A rank as a process that runs tests/impl/rank.py: it prints one JSON line for each iteration and obeys one-letter commands."""

    def __init__(
        self,
        address: str,
        rank: int,
        size: int,
        *,
        environment: dict[str, str] | None = None,
        log: Path | None = None,
        within: Sequence[str] = (),
        **options: object,
    ) -> None:
        """log: where its stderr goes, and with it what the library logs from WARNING on. within: a command that runs the one after it."""
        arguments = {"address": address, "rank": rank, "size": size, **options}
        self.rank = rank
        with contextlib.ExitStack() as stack:
            self.popen = subprocess.Popen(
                [*within, sys.executable, "-m", "tests.impl.rank", json.dumps(arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=None if log is None else stack.enter_context(log.open("w")),
                text=True,
                cwd=Path(__file__).parents[2],
                env={**os.environ, **(environment or {})},
            )

    def read(self) -> dict[str, Any]:
        """The next line it prints; {} when it has ended."""
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        return json.loads(line) if line else {}

    def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Read on to the first line that is wanted."""
        while line := self.read():
            if wanted(line):
                return line
        raise AssertionError(f"rank {self.rank} ended before it printed what was wanted")

    def tell(self, command: str) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(command + "\n")
        self.popen.stdin.flush()

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.popen.pid, number)

    def end(self) -> int:
        """Kill it if it still runs; its exit code."""
        if self.popen.poll() is None:
            self.popen.kill()
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                pipe.close()
        return self.popen.wait(10)
