"""The keys in the store, all of them. Their names are those of the original diagram, made to carry iteration and incarnation."""

import re

REGISTER = "global_iteration_counter"
"""The one key at which everything is decided; it is never deleted."""

PROBE = "?probe?"
"""A value that no key ever holds: compare_set(key, PROBE, PROBE) reads a key in one round trip and never blocks."""

BARRIER_KIND = "global_iteration_barrier_kind"
"""How the crew on this store meets: COMMAND or EMULATED. Written by the first who joins; the others have to meet in the same way."""
COMMAND, EMULATED = "command", "emulated"

ADDED, OPENED = ":added", ":open"
"""Where the barrier is not one command, the count is kept under its key with the first ending, and the last to come sets the one with the
second. Apart from the command's count: an `add` there would let through whoever is blocked in the command, with somebody still missing."""

_barrier = re.compile(r"global_iteration_barrier:(0|[1-9][0-9]{0,17}):(?:count(?::added|:open)?|full|arrived)")


def incarnation(rank: int) -> str:
    """Counts the processes that the rank has had."""
    return f"rank_{rank}_incarnation"


def members(epoch: str) -> str:
    """The epoch's membership list."""
    return f"global_iteration_members:{epoch}"


def count(iteration: int) -> str:
    """How many members have arrived at the barrier of this iteration."""
    return f"global_iteration_barrier:{iteration}:count"


def full(iteration: int) -> str:
    """Set once the iteration after this one is decided, to wake those who wait."""
    return f"global_iteration_barrier:{iteration}:full"


def arrived(iteration: int) -> str:
    """Who is at the barrier of this iteration and has something to say, by name."""
    return f"global_iteration_barrier:{iteration}:arrived"


def barrier(iteration: int) -> tuple[str, str, str]:
    """Every key of one barrier."""
    return (count(iteration), full(iteration), arrived(iteration))


def heartbeat(member: object) -> str:
    """What the member says of its life, or its supervisor of its death. `member` is a `Member` or its token."""
    return f"heartbeat_{member}"


def published(name: str) -> str:
    """A word left by `Crew.publish`."""
    return f"published:{name}"


def without_ending(key: str) -> str:
    """The key of the protocol that this one is a part of."""
    return key.removesuffix(ADDED).removesuffix(OPENED)


def is_rare(key: str) -> bool:
    """Whether an iteration without trouble leaves no such key: nobody signs in, and nobody has to be woken."""
    return key.startswith("global_iteration_barrier:") and key.endswith((":full", ":arrived"))


def iteration_of_barrier(key: str) -> int | None:
    """Which iteration's barrier a key belongs to; None for another key."""
    match = _barrier.fullmatch(key)
    return None if match is None else int(match.group(1))
