"""Crews of threads (one connection each) and of processes on a real store server, for tests."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import coxless
from coxless import Crew

T = TypeVar("T")

QUICK: dict[str, Any] = {
    "heartbeat_interval": timedelta(milliseconds=200),
    "heartbeat_timeout": timedelta(seconds=2),
    "join_timeout": timedelta(seconds=30),
    "timeout": timedelta(seconds=60),
}


def in_threads(size: int, body: Callable[[int], T]) -> list[T]:
    """Run body(rank) for each rank in a thread of its own; returns what each returned, or raises what the first one raised."""
    results: dict[int, T] = {}
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
    return [results[rank] for rank in range(size)]


def stopped(pid: int) -> None:
    """Stop a process, and wait until it has: SIGSTOP takes its time."""
    os.kill(pid, signal.SIGSTOP)
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.01)


def patiently(action: Callable[[], T]) -> T:
    """The action, repeated while its own deadline, which is short for a test's sake, is too short for a busy machine."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return action()
        except (coxless.IterationTimeoutError, coxless.StoreUnreachableError):
            if time.monotonic() > deadline:
                raise


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


# --- Ranks as processes that take one step at a time

SILENT = 3.0
"""The heartbeat timeout (s) of these."""
STEPWISE: dict[str, Any] = {
    "heartbeat_interval": 0.3,
    "heartbeat_timeout": SILENT,
    "join_timeout": 60,
    "timeout": 60,
    "stepwise": True,
}
Start = Callable[..., Process]


@contextmanager
def starting(address: str) -> Iterator[Start]:
    """Starts a rank of a crew of three, at another `address` if one is given; all are ended at the end of the block."""
    processes: list[Process] = []

    def start(rank: int, size: int = 3, **options: Any) -> Process:
        where = options.pop("address", address)
        processes.append(Process(where, rank, size, **{**STEPWISE, **options}))
        return processes[-1]

    try:
        yield start
    finally:
        for process in processes:
            process.end()


def at(number: int) -> Callable[[dict[str, Any]], bool]:
    return lambda line: line.get("iteration", 0) >= number


def founded(start: Start, **options: Any) -> list[Process]:
    """Three ranks in iteration 1."""
    ranks = [start(rank, **options) for rank in range(3)]
    for rank in ranks:
        rank.until(at(1))
    return ranks


def step(ranks: list[Process], number: int, vote: str = "ok") -> list[dict[str, Any]]:
    """All vote, and arrive together at iteration `number`."""
    for rank in ranks:
        rank.tell(vote)
    return [rank.until(at(number)) for rank in ranks]


def assert_out_of_reach(ranks: list[Process], message: str) -> None:
    """All vote, and each ends with a clear error in time."""
    for rank in ranks:
        rank.tell("ok")
    for rank in ranks:
        line = rank.until(lambda line: "error" in line)
        assert line["error"] == "StoreUnreachableError"
        assert message in line["message"]
        assert rank.popen.wait(10) == 3
