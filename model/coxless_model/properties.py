"""What the hardened protocol promises, each promise as one function.

Some promises can be read off a state. Others are about what has happened; for those a *ghost* keeps the little history that
they need (how far the decisions have come, who has arrived at the open barrier and with which vote) and notes a broken
promise at the step that breaks it. The protocol never sees the ghost.
"""

from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

from .hardened import RUN_OVER, Process, Setting, arrived_key
from .machine import Goal, Invariant, State, Views
from .records import Member, Record, Signature, Signatures, listed_as, names, newer
from .store import REGISTER, Operation, Store, member_text


class Wrong(NamedTuple):
    property: str
    what: str
    """With {} where the member belongs: a state must not name ranks in text, or it could not be renamed."""
    member: Member | None = None


class Ghost(NamedTuple):
    decided: int = 0
    """The highest iteration that was ever decided. (A decision that the store lost before anyone learned of it was none.)"""
    learned: int = 0
    """The highest iteration in which anyone took part."""
    arrivals: Signatures = ()
    """Who has arrived at the barrier of that iteration, and what it voted."""
    promised: tuple[Member, ...] = ()
    """The joiners that nobody may overlook: they signed, and attention is up because of them."""
    wrong: tuple["Wrong", ...] = ()
    """The promises broken so far."""


def observe(
    setting: Setting, ghost: Ghost, p: Process, op: Operation, before: Store, after: Store, down: Callable[[Member], bool]
) -> Ghost:
    """The ghost after the operation was applied (whether or not its reply arrives). `down`: the member has died or left."""
    match op:
        case ("barrier", ("count", _), _) if p.k == ghost.decided and p.me and p.me not in (one.member for one in ghost.arrivals):
            return ghost._replace(arrivals=tuple(sorted((*ghost.arrivals, Signature(p.me, p.flag or "o")))))
        case ("append", key, signature) if p.k == ghost.decided and key == arrived_key(setting, p.k):
            return ghost._replace(arrivals=tuple(sorted({*ghost.arrivals, signature})))
        case (_, ("register",), *_):
            was, now = before.get(REGISTER), after.get(REGISTER)
            if p.at == "raise_attention" and was != now and not p.member and p.me:
                return ghost._replace(promised=tuple(sorted({*ghost.promised, p.me})))
            if was is not None and now is not None and was != now and p.at not in ("raise_attention", "restore_register"):
                return decision(setting, ghost, p, was, now, down)
    return ghost


def decision(setting: Setting, ghost: Ghost, p: Process, was: Record, now: Record, down: Callable[[Member], bool]) -> Ghost:
    """The register went from `was` to `now`."""
    wrong = {*ghost.wrong, *_wrongs(setting, ghost, p, was, now, down)}
    return Ghost(max(ghost.decided, now.iteration), ghost.learned, wrong=tuple(sorted(wrong)))


def _wrongs(
    setting: Setting, ghost: Ghost, p: Process, was: Record, now: Record, down: Callable[[Member], bool]
) -> Iterator[Wrong]:
    if now.iteration <= ghost.decided:
        yield Wrong("S2", f"iteration {now.iteration} was decided again")
    if now.iteration > ghost.decided + 1:
        yield Wrong("S2", f"iteration {ghost.decided + 1} was skipped")
    arrived = {signature.member for signature in ghost.arrivals}
    listed = names(now.epoch.members)
    for member in listed:
        if member not in arrived:
            yield Wrong("S3", f"{{}} is listed for {now.iteration} without having arrived at the barrier before it", member)
    for member in names(was.epoch.members):
        replaced = any(newer(other, member) for other in listed)
        if member not in listed and not replaced and member not in p.suspected and not down(member):
            yield Wrong("S3", f"{{}} was left out of {now.iteration} though it was heard", member)
    if was.iteration == 0 and len(listed) < setting.ranks and not p.join_timeout:
        yield Wrong("S3", "the job is founded without a rank that was never seen, before the join timeout")
    if len(listed) < setting.min_ranks:
        yield Wrong("S3", f"iteration {now.iteration} has fewer than min_ranks participants")
    if len({member.rank for member in listed}) < len(listed):
        yield Wrong("S6", f"two incarnations of one rank are listed for {now.iteration}")
    for member in listed:
        if any(newer(other, member) for other in names(was.epoch.members)):
            yield Wrong("S6", f"{{}} is listed for {now.iteration} in the place of a newer incarnation", member)
    votes = [s.flag for s in ghost.arrivals if s.member in listed and s.member in names(was.epoch.members)]
    if now.committed and (not votes or any(flag != "o" for flag in votes)):
        yield Wrong(
            "S8", f"iteration {now.iteration - 1} counts as committed, with the votes {','.join(sorted(votes)) or 'of nobody'}"
        )
    for member in ghost.promised:
        if member not in listed and not any(newer(other, member) for other in listed):
            yield Wrong("L2", "{} had raised attention to join, and was overlooked", member)


def entered(ghost: Ghost, before: Process, after: Process) -> Ghost:
    """The ghost after a step that may have made the process take part in another iteration, or announced it as a joiner."""
    assert after.record is not None
    assert before.record is not None
    if after.member and not (before.member and after.record.same(before.record)):
        seen = max(before.floor, before.k if before.member else 0)
        ghost = ghost._replace(learned=max(ghost.learned, after.k))
        if after.k <= seen:
            wrong = Wrong("S5", f"the rank of {{}} took part in {seen}, and now takes part in {after.k}", after.me)
            return ghost._replace(wrong=tuple(sorted({*ghost.wrong, wrong})))
    elif after.at == "await_full" and before.at != "await_full" and not after.member and not after.record.attention and after.me:
        return ghost._replace(promised=tuple(sorted({*ghost.promised, after.me})))
    return ghost


def forgotten(ghost: Ghost) -> Ghost:
    """The ghost after the store lost its data: what nobody had learned has not happened."""
    return ghost if ghost.decided == ghost.learned else Ghost(ghost.learned, ghost.learned, wrong=ghost.wrong)


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
    """Who is listed as holding the model state does hold it (keeping an epoch says so of everyone in it). Otherwise a rank
    with a fresh model averages its gradients with the others, or is asked to send them its state."""
    for rank, p in taking_part(state):
        if p.at not in TRAINING:
            continue
        assert p.record is not None and p.me is not None
        listed = listed_as(p.record.epoch.members, p.me)
        if listed and (listed.holds or p.record.epoch.since < p.k) and not p.holds:
            return f"rank {rank} is taken to hold the model state in iteration {p.k}, and does not"
    return None


def commit(state: State) -> str | None:
    """The update of iteration k counts as committed only if every member of k that goes on, and one at least, voted ok.
    Otherwise the job keeps an update that one of its ranks never made."""
    return noted(state, "S8")


def not_overlooked(state: State) -> str | None:
    """A joiner that has raised attention is in the next list, as long as it lives. (L2's core: without it a fast job could
    leave a restarted rank waiting for ever.)"""
    return noted(state, "L2")


def bounded_store(state: State) -> str | None:
    """The number of keys does not grow with the number of iterations. A key may stay behind only while somebody has yet to
    delete it, or because a fault destroyed the intention to. Otherwise a long job fills the memory of its store."""
    shared = state.shared
    allowed = 5 * shared.faults
    register = shared.store.get(REGISTER)
    if _perhaps_stale(shared.store, register) <= allowed:
        return None  # Mostly, and whatever the processes know.
    live = [p for _, p in processes(state) if p.at not in RUN_OVER]
    queued = {key for p in live for key in p.queue}
    behind = {p.k for p in live if p.record is not None}
    current = {register.epoch} if register is not None else set()
    current |= {p.record.epoch for p in live if p.record is not None}
    current |= {epoch for p in live for epoch in p.wrote}
    k = register.iteration if register is not None else 0
    stale = 0
    for key in shared.store.keys:
        if key[0] == "members":
            stale += key not in queued and all(key[1] not in (epoch, (epoch.since,)) for epoch in current)
        elif key[0] in ("count", "full", "arrived"):
            # Barriers from the oldest that a live process knows on, and the one before, are still to be cleaned by somebody.
            stale += key not in queued and key[1] < min(behind | {k}) - 1
    if stale > allowed and not any(p.at == "done" for _, p in processes(state)):
        return f"{stale} keys were left behind for good, after {shared.faults} faults"
    return None


def _perhaps_stale(store: Store, register: Record | None) -> int:
    """The most keys that can be found stale, however far the processes are."""
    k = register.iteration if register is not None else 0
    return sum(key[0] == "members" or (key[0] in ("count", "full", "arrived") and key[1] < k - 1) for key in store.keys)


def register_and_wrongs(shared: Any) -> Hashable:
    """All that the safety properties look at in the shared part."""
    return shared.store.get(REGISTER), shared.ghost.wrong


def parts_taken(local: Any) -> Hashable:
    """All that the safety properties look at in a rank: the processes that take part, and what they know then."""
    return tuple(
        (p.me, p.record and p.record.lowered(), p.members, p.holds, p.at in TRAINING) for p in local.processes if p.member
    )


TAKING_PART = Views(register_and_wrongs, parts_taken)

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
    Invariant("L3", bounded_store),
)

# --- Liveness -----------------------------------------------------------------------------------------------------------


def goals(min_ranks: int) -> tuple[Goal, ...]:
    def too_few(state: State) -> bool:
        alive = sum(any(p.at not in ("stopped", "left") for p in local.processes) for local in state.ranks)
        return alive < min_ranks

    def advanced(state: State) -> bool:
        """If one rank stays alive (and at least min_ranks do) the iteration advances, here to the bound of the model.
        Otherwise the job hangs, and pays for its machines until somebody looks."""
        return all(p.at in RUN_OVER for _, p in processes(state))

    def takes_part(state: State) -> bool:
        """A rank that restarts and stays alive takes part again, or sees the run end. Otherwise a restart is worth nothing."""
        return all(p.member or p.at in RUN_OVER for _, p in processes(state))

    return (Goal("L1", advanced, too_few), Goal("L2", takes_part, too_few))
