"""Runs protocol generators by hand on an in-memory store: one store operation at a time, in the order that a test asks for.

No thread, clock or socket: patience runs out when a test lets a waiting rank step, suspicion and the join timeout are switches.
"""

from collections.abc import Callable, Generator

from coxless import keys
from coxless.protocol import ConnectionBroken, Decision, Operation, RankState, advance, enter
from coxless.protocol.operations import Add, Barrier, JoinTimedOut, ReadHeartbeat, Wait
from coxless.records import Flag, Member
from coxless_traces.targets import Memory


class MemoryStore(Memory):
    """Answers the driver's questions, too, and does not block."""

    def __init__(self, *, join_timed_out: bool = False) -> None:
        super().__init__()
        self.suspected: set[Member] = set()
        self.join_timed_out = join_timed_out

    def perform(self, operation: Operation) -> object:
        match operation:
            case Barrier(_, key, size):  # asked again by a caller that was counted before: `Rank.step`
                return int(self.data.get(key, "0")) >= size
            case ReadHeartbeat(_, member):
                return member in self.suspected
            case JoinTimedOut():
                return self.join_timed_out
        return super().perform(operation)


class Rank:
    """One rank's process: its state and the generator that it runs at present."""

    def __init__(self, store: MemoryStore, rank: int, *, world_size: int, min_ranks: int = 1, nonce: str = "a") -> None:
        self.store = store
        self.state = RankState(rank, world_size, min_ranks, nonce, generation=nonce)
        self.log: list[Operation] = []
        self.counted: Operation | None = None
        self.decisions: list[Decision] = []
        self.error: Exception | None = None
        self._run(enter(self.state))

    def vote(self, flag: Flag = "o") -> None:
        assert self.idle
        self._run(advance(self.state, flag))

    @property
    def idle(self) -> bool:
        """Between two advances, in its training step."""
        return self.operation is None

    @property
    def iteration(self) -> int:
        return self.decisions[-1].record.iteration if self.decisions else 0

    @property
    def participants(self) -> list[int]:
        return [member.rank for member, _ in self.decisions[-1].members]

    def step(self, *, breaks: str = "") -> Operation:
        """Perform the operation that this rank stands before. breaks: "before" or "after", the connection breaks then."""
        operation = self.operation
        assert operation is not None, f"rank {self.state.rank} is training"
        if isinstance(operation, Barrier) and self.counted is not operation and breaks != "before":
            self.counted = operation
            self.store.perform(Add(operation.step, operation.key, 1))
            if not self.store.perform(operation) and not breaks:
                return operation  # counted, and blocked
        reply = self.store.perform(operation) if breaks != "before" else None
        self.log.append(operation)
        self._resume((lambda: self.generator.throw(ConnectionBroken())) if breaks else (lambda: self.generator.send(reply)))
        for key in self.state.deletions:
            self.store.data.pop(key, None)
        self.state.deletions = []
        return operation

    @property
    def waits(self) -> bool:
        """It stands before an operation that does not return yet."""
        blocked = isinstance(self.operation, Wait) or (isinstance(self.operation, Barrier) and self.counted is self.operation)
        return blocked and self.operation is not None and not self.store.perform(self.operation)

    def run(self, *, before: str = "", limit: int = 200) -> None:
        """Step until the decision, or until it stands before the named step, or waits for somebody."""
        for _ in range(limit):
            if self.operation is None or (before and self.operation.step == before):
                return
            if self.waits:
                return
            self.step()
        raise AssertionError(f"rank {self.state.rank} does not come to rest: {[op.step for op in self.log[-12:]]}")

    def lose_patience(self) -> None:
        """Let the wait that it stands before end with nothing, then run on until it waits again or decides."""
        assert self.waits, self.operation
        self.step()
        self.run()

    def _run(self, generator: Generator[Operation, object, Decision]) -> None:
        self.generator = generator
        self.operation: Operation | None = None
        self._resume(lambda: next(generator))

    def _resume(self, resume: Callable[[], Operation]) -> None:
        try:
            self.operation = resume()
        except StopIteration as stop:
            self.operation = None
            self.decisions.append(stop.value)
        except Exception as error:  # noqa: BLE001  (a test looks at it)
            self.operation, self.error = None, error


def found(size: int, *, min_ranks: int = 1, store: MemoryStore | None = None) -> tuple[MemoryStore, list[Rank]]:
    """A crew of `size` ranks in iteration 1."""
    store = store or MemoryStore()
    ranks = [Rank(store, r, world_size=size, min_ranks=min_ranks, nonce=f"{r:x}a") for r in range(size)]
    for rank in ranks:
        rank.run()
    for rank in ranks:
        rank.run()
    return store, ranks


def barrier_keys(store: MemoryStore) -> list[str]:
    return sorted(key for key in store.data if key.startswith("global_iteration_barrier"))


def register(store: MemoryStore) -> str:
    return store.data[keys.REGISTER]
