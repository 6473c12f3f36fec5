"""What the hardened protocol promises, each promise as one function.

Some promises can be read off a state. Others are about what has happened; those are noted by the ghost (ghost.py) at the step that
breaks them.
"""

from collections.abc import Hashable, Iterable, Iterator
from typing import Any, NamedTuple

from .machine import Goal, Invariant, State, Views
from .process import RUN_OVER, Process
from .records import Epoch, listed_as
from .store import REGISTER, Key, Store, member_text

# --- Safety -------------------------------------------------------------------------------------------------------------


def processes(state: State) -> Iterator[tuple[int, Process]]:
    for rank, local in enumerate(state.ranks):
        for process in local.processes:
            yield rank, process


def taking_part(state: State) -> Iterator[tuple[int, Process]]:
    return ((rank, p) for rank, p in processes(state) if p.member and p.record is not None)


def noted(state: State, name: str) -> str | None:
    for wrong in state.shared.ghost.wrong:
        if wrong.property == name:
            return str(wrong.what.format(wrong.member and member_text(wrong.member)))
    return None


def agreement(state: State) -> str | None:
    """At most one decision per iteration: all who take part in iteration k hold the same record of it, and the same list.
    Otherwise two halves of a job train iteration k with different ideas of who is in it, and their models drift apart."""
    register = state.shared.store.get(REGISTER)
    seen: dict[int, tuple[int, Process]] = {}
    for rank, p in taking_part(state):
        assert p.record is not None
        other_rank, other = seen.setdefault(p.k, (rank, p))
        assert other.record is not None
        if not p.record.same(other.record) or p.members != other.members:
            return f"ranks {other_rank} and {rank} take part in iteration {p.k} with different records of it"
        if register is not None and register.iteration == p.k and not p.record.same(register):
            return f"rank {rank} takes part in iteration {p.k} with a record that the register does not have"
    return noted(state, "S1")


def no_gap_no_double(state: State) -> str | None:
    """Decisions are 1, 2, 3, ...: none is skipped, none is repeated. Otherwise a batch of data is trained twice, or never."""
    return noted(state, "S2")


def barrier(state: State) -> str | None:
    """Every participant of k+1 arrived at the barrier of k, and no member of k is left out unless it had been silent for the
    timeout, had gone, or was replaced by a newer incarnation that arrived. Otherwise the job trains on with ranks that are
    not there (and hangs in its next collective), or drops one that had done its work."""
    return noted(state, "S3")


def membership(state: State) -> str | None:
    """A rank trains k only as a participant of k. Otherwise a rank that was given up on sends its gradients all the same."""
    for rank, p in taking_part(state):
        assert p.record is not None and p.members is not None and p.me is not None
        if not listed_as(p.members, p.me) or not listed_as(p.record.epoch.members, p.me):
            return f"rank {rank} takes part in iteration {p.k}, in which it is not listed"
    return None


def monotonic(state: State) -> str | None:
    """The iterations in which a rank takes part only grow, over restarts too. Otherwise it trains old batches again and
    overwrites newer checkpoints."""
    return noted(state, "S5")


def one_incarnation(state: State) -> str | None:
    """At most one incarnation of a rank takes part in an iteration. Otherwise two processes send as the same rank."""
    for rank, local in enumerate(state.ranks):
        iterations = [p.k for p in local.processes if p.member]
        if len(set(iterations)) < len(iterations):
            return f"two processes of rank {rank} take part in the same iteration"
    return noted(state, "S6")


TRAINING = ("arrive", "wake", "done")


def model_state(state: State) -> str | None:
    """Who is listed as holding the model state does hold it, and the other way round (keeping an epoch says so of everyone in it).
    Otherwise a rank with a fresh model averages its gradients with the others, or is asked to send them its state; or the state of
    one that has it is overwritten, and perhaps nobody's is left."""
    for rank, p in taking_part(state):
        if p.at not in TRAINING:
            continue
        assert p.record is not None and p.me is not None
        listed = listed_as(p.record.epoch.members, p.me)
        if listed and (listed.holds or p.record.epoch.since < p.k) != p.holds:
            return f"rank {rank} is taken {'not ' if p.holds else ''}to hold the model state in iteration {p.k}, and it is not so"
    return noted(state, "S7")


def commit(state: State) -> str | None:
    """The update of iteration k counts as committed if, and only if, every member of k that goes on voted ok, and one at least goes
    on. Otherwise the job keeps an update that one of its ranks never made, or throws away work that all have done."""
    return noted(state, "S8")


def not_overlooked(state: State) -> str | None:
    """A joiner that has raised attention is in the next list, as long as it lives; and no process gives up unless another of its rank
    has taken its place. (L2's core: without it a fast job could leave a restarted rank waiting for ever.)"""
    return noted(state, "L2")


def bounded_store(state: State) -> str | None:
    """The number of keys does not grow with the number of iterations. A key may stay behind only while somebody has yet to
    delete it, or because a fault destroyed the intention to. Otherwise a long job fills the memory of its store."""
    old = litter(state.shared)
    if old is None:
        return None
    k, candidates = old
    alive = [process for local in state.ranks for process in cleaners(local)]
    queued = {key for process in alive for key in process.queue}
    needed = {epoch for process in alive for epoch in process.epochs}
    oldest = min([k, *(process.k for process in alive if process.k is not None)])

    def stale(key: Key) -> bool:
        if key[0] == "members":
            return all(key[1] not in (epoch, (epoch.since,)) for epoch in needed)
        # Barriers from the oldest that a live process knows on, and the one before, are still to be cleaned by somebody.
        return bool(key[1] < oldest - 1)

    left = [key[0] for key in candidates if key not in queued and stale(key)]
    return f"{len(left)} keys were left behind for good: {', '.join(left)}" if left else None


def litter(shared: Any) -> tuple[int, tuple[Key, ...]] | None:
    """The register's iteration, and the keys that are stale unless some process still needs them; None if there are none."""
    register = shared.store.get(REGISTER)
    k = register.iteration if register is not None else 0
    current = () if register is None else (register.epoch, (register.epoch.since,))
    candidates = tuple(
        key
        for key in shared.store.keys
        if (key[0] == "members" and key[1] not in current) or (key[0] in ("count", "full", "arrived") and key[1] < k - 1)
        if key not in shared.leaked
    )
    return (k, candidates) if candidates else None


class Cleaner(NamedTuple):
    """What a live process means for keys that may be stale."""

    queue: tuple[Key, ...]
    k: int | None
    epochs: tuple[Epoch, ...]
    """Those whose lists it needs, or may be about to propose."""


def cleaners(local: Any) -> tuple[Cleaner, ...]:
    return tuple(
        Cleaner(p.queue, None if p.record is None else p.k, (() if p.record is None else (p.record.epoch,)) + p.wrote)
        for p in local.processes
        if p.at not in ("stopped", "left")
    )


def leak(p: Process, store: Store) -> tuple[Key, ...]:
    """The keys that may stay behind as the process dies: what it had yet to delete, what it may have written after others had come by
    with their clean-up, and the list that it replaced, if it has decided without knowing."""
    register = store.get(REGISTER)
    late = () if p.record is None else tuple((kind, k) for k in (p.k - 1, p.k) for kind in ("count", "full", "arrived"))
    lists = tuple(("members", epoch) for epoch in p.wrote)
    if p.record is not None and register is not None and register.iteration > p.k:
        lists += (("members", p.record.epoch),)
    return present(store, (*p.queue, *late, *lists))


def present(store: Store, wanted: Iterable[Key]) -> tuple[Key, ...]:
    """Those of the keys that are there. (Key by key: who asks for all keys depends on all.)"""
    return tuple(key for key in wanted if store.get(key) is not None)


def register_and_wrongs(shared: Any) -> Hashable:
    """All that the safety properties look at in the shared part."""
    return shared.store.get(REGISTER), shared.ghost.wrong


def parts_taken(local: Any) -> Hashable:
    """All that the safety properties look at in a rank: the processes that take part, and what they know then."""
    return tuple(
        (p.me, p.record and p.record.lowered(), p.members, p.holds, p.at in TRAINING) for p in local.processes if p.member
    )


TAKING_PART = Views(register_and_wrongs, parts_taken)
LITTER = Views(litter, cleaners)

INVARIANTS = (
    Invariant("S1", agreement, TAKING_PART),
    Invariant("S2", no_gap_no_double, TAKING_PART),
    Invariant("S3", barrier, TAKING_PART),
    Invariant("S4", membership, TAKING_PART),
    Invariant("S5", monotonic, TAKING_PART),
    Invariant("S6", one_incarnation, TAKING_PART),
    Invariant("S7", model_state, TAKING_PART),
    Invariant("S8", commit, TAKING_PART),
    Invariant("L2", not_overlooked, TAKING_PART),
    Invariant("L3", bounded_store, LITTER),
)

# --- Liveness -----------------------------------------------------------------------------------------------------------


def goals(min_ranks: int) -> tuple[Goal, ...]:
    def too_few(state: State) -> bool:
        alive = sum(any(p.at not in ("stopped", "left") for p in local.processes) for local in state.ranks)
        return alive < min_ranks or state.shared.ghost.void

    def advanced(state: State) -> bool:
        """If one rank stays alive (and at least min_ranks do) the iteration advances, here to the bound of the model.
        Otherwise the job hangs, and pays for its machines until somebody looks."""
        return all(p.at in RUN_OVER for _, p in processes(state))

    def takes_part(state: State) -> bool:
        """A rank that restarts and stays alive takes part again, or sees the run end. Otherwise a restart is worth nothing."""
        return all(p.member or p.at in RUN_OVER for _, p in processes(state))

    return (Goal("L1", advanced, too_few), Goal("L2", takes_part, too_few))
