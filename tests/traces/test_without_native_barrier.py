"""Where torch's TCPStore has no barrier command (before 2.13, as far as we have seen), the library makes it of add, set and wait: the same crew, three
commands instead of two, and what it records is still what the model could have done."""

import os
import subprocess
import sys
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import coxless
from coxless import connection, keys
from coxless.server import start_server
from coxless_traces.validation import validate

from ..impl.crews import crew_of, in_threads

RANKS, LAST = 3, 40


def train() -> None:
    """One rank, as a process."""
    connection.has_native_barrier = lambda store: False  # type: ignore[attr-defined]
    with coxless.join_from_env(heartbeat_timeout=timedelta(seconds=2), heartbeat_interval=timedelta(seconds=0.2)) as crew:
        for iteration in crew.iterations():
            if iteration.number >= LAST and iteration.world_size == RANKS:
                return


def test_a_killed_rank_comes_back_and_the_recording_is_admitted(tmp_path: Path) -> None:
    """The rank dies with deletions of its own to do, so that the others sweep, the key that opened the barrier among it."""
    command = [sys.executable, "-c", "from tests.traces.test_without_native_barrier import train; train()"]
    with start_server() as server:
        usual = dict(os.environ, COXLESS_TRACE=str(tmp_path), COXLESS_STORE=server.address, WORLD_SIZE=str(RANKS))
        faults: dict[int, dict[str, str]] = {1: {"COXLESS_FAULT": "arrive@7"}}
        ranks = [subprocess.Popen(command, env={**usual, "RANK": str(rank), **faults.get(rank, {})}) for rank in range(RANKS)]
        try:
            assert ranks[1].wait(120) == -9
            ranks[1] = subprocess.Popen(command, env={**usual, "RANK": "1"})
            assert [rank.wait(120) for rank in ranks] == [0] * RANKS
        finally:
            for rank in ranks:
                rank.kill()
        left = coxless.connect(server.address).list_keys()
    assert [key for key in left if key.endswith(keys.OPENED) and not key.startswith(_newest(left))] == []
    verdict = validate(tmp_path)
    assert verdict.holds, verdict


def _newest(left: list[str]) -> tuple[str, ...]:
    """The last two barriers, whose keys stay."""
    last = sorted({k for k in map(keys.iteration_of_barrier, left) if k is not None})[-2:]
    return tuple(keys.count(k) for k in last)


def test_the_fast_path_costs_three_commands_a_rank(monkeypatch: Any) -> None:
    """And one more for the whole crew."""
    monkeypatch.setattr(connection, "has_native_barrier", lambda store: False)
    commands: Counter[str] = Counter()

    class Counting:
        def __init__(self, store: Any) -> None:
            self.store = store

        def __getattr__(self, name: str) -> Any:
            commands[name] += 1
            return getattr(self.store, name)

    with start_server() as server:

        def body(rank: int) -> None:
            with crew_of(server.address, rank, RANKS, patience=timedelta(seconds=0.5)) as crew:
                crew.advance()
                own = crew._driver.connection
                store, own.store = own.store, Counting(own.store)
                for _ in range(50):
                    crew.advance()
                own.store = store

        in_threads(RANKS, body)
    assert commands["add"] == commands["compare_set"] == 50 * RANKS
    assert commands["wait"] == 50 * (RANKS - 1)
    assert 50 <= commands["set"] < 60, "one opens the barrier; nobody is woken, as nobody can have run out of patience"
    assert set(commands) == {"add", "compare_set", "wait", "set"}
