"""A process of a rank in the hardened protocol, as a value: where it stands and what it knows; and the keys that it speaks of."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from .records import Epoch, Member, Members, Record, Signatures
from .store import Key, Operation


class Setting(NamedTuple):
    """What every process was told when it started."""

    ranks: int
    min_ranks: int
    iterations: int
    """Where the model stops looking: who learns the decision of this iteration is done."""
    lag: int = 99
    """How many deletions a process may put off while it goes on with its own steps; with 0 it cleans up before the next one. (In
    either case the others may go on as far as they like before it does.)"""
    missing: tuple[str, ...] = ()
    """The guards that a mutant lacks."""

    def guards(self, guard: str) -> bool:
        return guard not in self.missing


class Process(NamedTuple):
    at: str
    conn: int
    """The store instance that it is connected to; BROKEN after a message was lost."""
    me: Member | None = None
    record: Record | None = None
    """R: the latest record that it accepted, as the exact value last read."""
    members: Members | None = None
    """L: the list of R's epoch; None while it has not been read."""
    member: bool = False
    """It takes part in the iteration of R, so it is a member at this barrier; otherwise it is a joiner."""
    flag: str = "j"
    """What it says of itself at this barrier; empty while it trains."""
    holds: bool = False
    """Whether it has the model state in truth, which `flag` should tell."""
    signed: bool = False
    full: bool = False
    """It knows that the barrier is complete."""
    mode: str = ""
    """Why it takes the step at which it stands, where there are several ways to go on after it."""
    pending: Record | None = None
    """The newer record whose list it has to read; while restoring, the older one that it found."""
    signatures: Signatures = ()
    unheard: tuple[Member, ...] = ()
    """Missing members whose heartbeats it has yet to read."""
    suspected: tuple[Member, ...] = ()
    beating: bool = False
    """One of the missing members was heard: this pass cannot close."""
    proposal: Record | None = None
    rival: Member | None = None
    """A newer incarnation of its rank that it has seen."""
    renewal: int = 0
    """What it adds to the counter of its rank, to come out above that one."""
    wrote: tuple[Epoch, ...] = ()
    """The lists that it wrote at this barrier, in this order."""
    queue: tuple[Key, ...] = ()
    """What its clean-up has yet to delete."""
    join_timeout: bool = False

    @property
    def k(self) -> int:
        assert self.record is not None
        return self.record.iteration


BROKEN = -1
RUN_OVER = ("done", "stopped", "left")


class Move(NamedTuple):
    """One way to take a step: the operation, and what the process becomes when it has the reply."""

    name: str
    op: Operation
    then: Callable[[Any], Process]
    note: str = ""
    cost: str = ""
    """The budget that pays for it, if the move is a fault."""


Moves = Iterator[Move]


def constantly(after: Process) -> Callable[[Any], Process]:
    return lambda _: after


def start(conn: int) -> Process:
    return Process("take_incarnation", conn)


def members_key(setting: Setting, epoch: Epoch) -> Key:
    return ("members", epoch) if setting.guards("content_addressed") else ("members", (epoch.since,))


def count_key(setting: Setting, k: int) -> Key:
    return ("count", k) if setting.guards("fresh_count") else ("count", 0)


def arrived_key(setting: Setting, k: int) -> Key:
    return ("arrived", k) if setting.guards("fresh_arrived") else ("arrived", 0)


def full_key(setting: Setting, k: int) -> Key:
    return ("full", k) if setting.guards("fresh_full") else ("full", 0)


def barrier_keys(setting: Setting, k: int) -> tuple[Key, ...]:
    return (count_key(setting, k), full_key(setting, k), arrived_key(setting, k)) if k >= 0 else ()


def at_barrier(p: Process, at: str, **changes: Any) -> Process:
    """Go to another step of the same barrier; what the last closing pass found out is forgotten."""
    forgotten: dict[str, Any] = {"mode": "", "pending": None, "signatures": (), "unheard": (), "suspected": (), "beating": False}
    return p._replace(**{**forgotten, "proposal": None, "rival": None, "renewal": 0, "at": at, **changes})
