"""The protocol exactly as the original diagram draws it. **It does not work, and is here to show how it fails. Do not train with it.**

Six phases on keys that carry neither iteration nor incarnation, `set` as the race, wall clocks of different hosts compared, and a winner
who has six things to do before anybody else is told. traces/*.itf.json are its failures, and tests replay each on a real TCPStore.
The names of the functions and steps are the diagram's. docs/diagram.md says what takes the place of each in the library.
"""

import time
from collections.abc import Generator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

from torch.distributed import Store

from .connection import Connection
from .protocol.operations import Add, Append, Delete, Operation, Read, Set, Wait

COUNTER = "global_iteration_counter"
READY = "global_iteration_ready"
ARRIVED = "global_iteration_barrier:arrived"
CONSENSUS = "global_iteration_barrier:consensus"

HEARTBEAT_INTERVAL = 5.0
HEARTBEAT_TIMEOUT = 30.0


def heartbeat(rank: int) -> str:
    """The key of a rank's heartbeat, whichever process sends it."""
    return f"heartbeat_{rank}"


def last_iteration(rank: int) -> str:
    """The key of the iteration that a winner has recorded for a rank."""
    return f"rank_{rank}_last_iteration"


class SendHeartbeat(NamedTuple):
    """Set heartbeat_{rank} to this host's wall clock. No reply."""

    step: str
    rank: int


class ReadHeartbeatAge(NamedTuple):
    """Reply: "fresh" when heartbeat_{rank} is at most 30 s older than this host's wall clock, "stale" when it is more, None when missing."""

    step: str
    rank: int


DrawnOperation = Operation | SendHeartbeat | ReadHeartbeatAge
Steps = Generator[DrawnOperation, Any, int]


def advance(rank: int, world_size: int, iteration: int) -> Steps:
    """Phases 1 to 6, from training `iteration` to the next number, which is returned."""
    yield SendHeartbeat("send_heartbeat", rank)  # phase 1
    yield Append("signal_arrival", ARRIVED, f"{rank},")  # phase 2
    while not (yield from every_active_rank_has_arrived(rank, world_size)):  # phase 3
        pass
    yield Set("set_consensus", CONSENSUS, str(rank))  # phase 4: last writer wins, so several ranks can win one after the other
    winner = yield Read("read_consensus", CONSENSUS)
    if winner == str(rank):
        return (yield from advance_as_winner(rank, world_size))  # phase 5
    while True:  # phase 6: whatever `ready` holds, from whichever round
        while not (yield Wait("await_ready", READY)):
            pass
        ready = yield Read("read_ready", READY)
        if ready is not None:
            return int(ready)


def every_active_rank_has_arrived(rank: int, world_size: int) -> Generator[DrawnOperation, Any, bool]:
    """get_active_ranks_for_coordination: a rank is active when its heartbeat is fresh by the clock of the host that looks. A rank
    that was never seen is therefore not active, and the first one up is alone."""
    text = yield Read("read_arrived", ARRIVED)
    arrived = {int(number) for number in (text or "").split(",") if number}
    complete = rank in arrived
    for other in range(world_size):
        if other != rank:
            age = yield ReadHeartbeatAge("read_heartbeat", other)
            complete = complete and (age != "fresh" or other in arrived)
    return complete


def advance_as_winner(rank: int, world_size: int) -> Steps:
    """Six things to do. Whoever dies between two of them leaves everybody waiting."""
    number: int = yield Add("increment_global_iteration", COUNTER, 1)  # unconditionally
    for other in range(world_size):
        yield Set("record_iteration_for_rank", last_iteration(other), str(number))
    yield Delete("clear_global_iteration_ready", READY)
    yield Set("signal_global_iteration_ready", READY, str(number))
    yield Delete("clean_arrived", ARRIVED)  # whoever was quick enough to arrive for the next round is forgotten here
    yield Delete("clean_consensus", CONSENSUS)
    return number


def handle_rank_restart(rank: int) -> Steps:
    """What a restarted rank does first: its last iteration, a heartbeat, and `catch_up_restarting_rank`. Returns the iteration to train."""
    text = yield Read("read_last_iteration", last_iteration(rank))
    own = 0 if text is None else int(text)
    yield SendHeartbeat("send_heartbeat", rank)
    counter = yield Read("catch_up", COUNTER)
    return own if counter is None else int(counter)


@dataclass
class AsDrawnRank:
    """Runs the generators on a real store, for demonstrations. `clock_offset` (s) makes this host's wall clock differ."""

    store: Store
    rank: int
    world_size: int
    iteration: int = 0
    clock_offset: float = 0.0

    def __post_init__(self) -> None:
        self._connection = Connection(self.store)

    def advance(self, *, timeout: timedelta) -> int:
        """Train nothing and go on to the next iteration. Raises TimeoutError: as drawn, a rank would wait for ever."""
        self.iteration = self._run(advance(self.rank, self.world_size, self.iteration), timeout)
        return self.iteration

    def restart(self, *, timeout: timedelta) -> int:
        """What a process that was started again does before it trains. Raises TimeoutError."""
        self.iteration = self._run(handle_rank_restart(self.rank), timeout)
        return self.iteration

    def _run(self, steps: Steps, timeout: timedelta) -> int:
        deadline = time.monotonic() + timeout.total_seconds()
        try:
            operation = next(steps)
            while time.monotonic() < deadline:
                operation = steps.send(self.perform(operation))
        except StopIteration as stop:
            number: int = stop.value
            return number
        raise TimeoutError(
            f"rank {self.rank} stood before {operation.step} for {timeout.total_seconds():g} s; as drawn it would do so for ever"
        )

    def perform(self, operation: DrawnOperation) -> object:
        """One operation on the real store."""
        connection, now = self._connection, time.time() + self.clock_offset
        match operation:
            case SendHeartbeat(_, rank):
                connection.set(heartbeat(rank), f"{now:.3f}")
            case ReadHeartbeatAge(_, rank):
                text = connection.read(heartbeat(rank))
                return None if text is None else "fresh" if now - float(text) <= HEARTBEAT_TIMEOUT else "stale"
            case Add(_, key, amount):
                return connection.add(key, amount)
            case Set(_, key, value):
                connection.set(key, value)
            case Append(_, key, value):
                connection.append(key, value)
            case Read(_, key):
                return connection.read(key)
            case Wait(_, key):
                return connection.wait(key, timedelta(milliseconds=200))
            case Delete(_, key):
                connection.delete(key)
            case _:
                raise AssertionError(f"the drawn protocol has no {operation!r}")
        return None

    def close(self) -> None:
        """Use the connection no more."""
        self._connection.close()
