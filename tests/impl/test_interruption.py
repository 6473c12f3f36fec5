"""An exception from a signal handler (Ctrl-C) may strike anywhere. The call can be repeated, and nothing is counted, voted or lost twice."""

import linecache
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch.distributed as dist

import coxless
from coxless import keys
from coxless.server import StoreServer, start_server

from .crews import QUICK

HERE = str(Path(coxless.__file__).parent)


@pytest.fixture
def server() -> Iterator[StoreServer]:
    with start_server() as running:
        yield running


class Interrupter:
    """Raises KeyboardInterrupt at the n-th line of the library that this thread runs.

    Not where Python itself looks for signals nowhere before the caller has the result: it does so at calls and backward jumps, and
    there is neither between the last assignment of `Crew.advance` and its return.
    """

    def __init__(self, at: int) -> None:
        self._left = at
        self.struck = ""

    def _trace(self, frame: FrameType, event: str, argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(HERE):
            return None
        last = frame.f_code.co_name == "advance" and linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        if event == "line" and not self.struck and last != "return iteration":
            if self._left == 0:
                self.struck = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                raise KeyboardInterrupt
            self._left -= 1
        return self._trace

    def __enter__(self) -> "Interrupter":
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)


@pytest.mark.parametrize("generator", [False, True])
@pytest.mark.parametrize("ok", [True, False])
def test_at_every_line_of_an_advance(ok: bool, generator: bool) -> None:
    """Rank 0 is interrupted at the first line of its first advance, at the second line of its second one, and so on to the last line."""
    store = dist.HashStore()
    options: dict[str, Any] = {
        **QUICK,
        "world_size": 2,
        "patience": timedelta(milliseconds=10),
        "heartbeat_timeout": timedelta(minutes=5),
    }

    def other() -> None:
        with coxless.join(store, rank=1, **options) as crew:
            for iteration in crew.iterations():
                if iteration.number > 1 and iteration.world_size == 1:
                    return

    thread = threading.Thread(target=other, daemon=True)
    thread.start()
    struck: list[str] = []
    with coxless.join(store, rank=0, **options) as crew:
        if generator:
            crew._driver.watchers.append(lambda state, operation, reply: None)
        before = crew.advance()
        while True:
            with Interrupter(len(struck)) as interrupter:
                while True:
                    try:
                        iteration = crew.advance(ok, holds=True)
                        break
                    except KeyboardInterrupt:
                        continue
            where = interrupter.struck
            assert iteration.number == before.number + 1, where
            assert iteration.committed == ok, where
            assert [member.rank for member in iteration.participants] == [0, 1], where
            assert all(iteration.holders) or before.number == 1, where
            count = store.compare_set(keys.count(before.number), keys.PROBE, keys.PROBE)
            assert count in (b"2", b"1", keys.PROBE.encode()), where
            before = iteration
            if not where:
                break
            struck.append(where)
    thread.join(60)
    assert not thread.is_alive()
    assert len(struck) > 30
    files = {"crew.py", "connection.py", "fast_path.py"} | ({"driver.py"} if generator or not ok else set())
    assert files <= {where.partition(":")[0] for where in struck}


def test_at_every_line_of_founding() -> None:
    struck: list[str] = []
    while True:
        store = dist.HashStore()
        with coxless.join(store, rank=0, world_size=1, **QUICK) as crew:
            with Interrupter(len(struck)) as interrupter:
                while True:
                    try:
                        iteration = crew.advance()
                        break
                    except KeyboardInterrupt:
                        continue
            where = interrupter.struck
            assert iteration.number == 1, where
            assert iteration.participants == (crew.member,), where
            assert crew.advance().number == 2, where
            assert int(store.get(keys.incarnation(0))) <= 2, where
        if not where:
            break
        struck.append(where)
    assert len(struck) > 50


@pytest.mark.processes
def test_an_exception_of_a_signal_handler_is_not_taken_for_a_timeout(server: StoreServer) -> None:
    program = """
import signal, sys
from datetime import timedelta
import coxless

def handler(number, frame):
    raise RuntimeError("timeout of the job")

signal.signal(signal.SIGALRM, handler)
with coxless.join(sys.argv[1], rank=0, world_size=2, timeout=timedelta(seconds=30), patience=timedelta(seconds=0.5)) as crew:
    signal.setitimer(signal.ITIMER_REAL, 1)
    try:
        crew.advance()
    except RuntimeError as error:
        print(error, flush=True)
"""
    done = subprocess.run([sys.executable, "-c", program, server.address], capture_output=True, text=True, timeout=60)
    assert done.stdout == "timeout of the job\n", done.stderr


@pytest.mark.processes
def test_by_ctrl_c_while_it_waits_in_the_barrier(server: StoreServer) -> None:
    """Rank 0 waits, is interrupted, and waits again. It must not be taken for rank 1, which then comes, and whose step has failed."""
    program = """
import os, signal, sys, threading
from datetime import timedelta
import coxless
rank = int(sys.argv[2])
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in the background
with coxless.join(sys.argv[1], rank=rank, world_size=2, timeout=timedelta(seconds=60), patience=timedelta(seconds=0.5)) as crew:
    crew.advance()
    crew.advance()
    if rank == 0:
        interruptions = 0
        while True:
            try:
                if not interruptions:
                    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
                iteration = crew.advance()
                break
            except KeyboardInterrupt:
                interruptions += 1
                crew.store.set("interrupted", "1")
        assert interruptions == 1
    else:
        coxless.connect(sys.argv[1]).wait(["interrupted"], timedelta(seconds=30))
        iteration = crew.advance(False)
    print(iteration.number, iteration.committed, [member.rank for member in iteration.participants], iteration.rejoined, flush=True)
"""
    ranks = [
        subprocess.Popen([sys.executable, "-c", program, server.address, str(rank)], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        assert [rank.communicate(timeout=60)[0] for rank in ranks] == ["3 False [0, 1] False\n"] * 2
    finally:
        for rank in ranks:
            rank.kill()
