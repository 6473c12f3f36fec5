"""How far a search has come: the cursors, the model's state, and what ties the two."""

from typing import Any, NamedTuple

from coxless_model.environment import Rank, Shared, with_pulse
from coxless_model.machine import Action, State
from coxless_model.process import Move, Process
from coxless_model.records import Member
from coxless_model.store import REGISTER

from .recorded import Item


class Node(NamedTuple):
    cursors: tuple[tuple[int, int], ...]
    """The threads that have begun and are not at their end, each with the place of its next item. Two for each recording: the training
    thread's, and the clean-up's."""
    state: State
    alive: tuple[tuple[int, ...], ...]
    """For each rank the recordings that its processes in the model stand for, in the model's order."""
    upcoming: int = 0
    """The first recording that has not begun."""
    done: int = 0
    """Items so far."""
    moment: int = 0
    """The latest beginning of any of them."""
    fresh: frozenset[int] = frozenset()
    """Recordings that have come to a decision whose line is still to be read."""
    voted: frozenset[tuple[int, str]] = frozenset()
    """Recordings that have read their vote's line, and the vote."""
    gone: frozenset[int] = frozenset()
    """Recordings whose process has ended, ..."""
    stopped: frozenset[int] = frozenset()
    """... and those of them that were superseded."""
    spent: frozenset[int] = frozenset()
    """Recordings at their end to which one operation more was granted, which was in flight."""
    claims: tuple[Any, ...] | None = None
    """The properties broken until the store-loss clause ceased to hold; None while it holds."""
    taken: tuple[Action, ...] = ()
    """The model's actions that led here from the node before; no part of where the search is."""

    def bare(self) -> "Node":
        return self._replace(taken=(), moment=0) if self.taken or self.moment else self


def moved(node: Node, thread: int, item: Item, threads: list[tuple[Item, ...]]) -> Node:
    """The node with one item of the thread consumed."""
    cursors = []
    for one, at in node.cursors:
        if one != thread:
            cursors.append((one, at))
        elif at + 1 < len(threads[thread]):
            cursors.append((one, at + 1))
    return node._replace(cursors=tuple(cursors), done=node.done + 1, moment=max(node.moment, item.begin))


def with_local(node: Node, rank: int, local: Rank) -> Node:
    ranks = node.state.ranks
    return node._replace(state=State(node.state.shared, (*ranks[:rank], local, *ranks[rank + 1 :])))


def with_p(node: Node, rank: int, place: int, p: Process) -> Node:
    local: Rank = node.state.ranks[rank]
    return with_local(node, rank, local._replace(processes=(*local.processes[:place], p, *local.processes[place + 1 :])))


def with_budget(shared: Shared, lost_replies: int) -> Shared:
    return shared._replace(budgets=shared.budgets._replace(lost_replies=lost_replies))


def with_named(after: Node, before: Node, rank: int, nonce: int, move: Move, op: tuple[Any, ...] | None) -> Node | None:
    """The step took an incarnation, or created the register: with the nonce, or the generation, that was drawn in truth instead of the
    model's. None if it is another operation than the recorded one."""
    shared, local = after.state
    if move.name == "create_register":
        drawn = move.op[3].generation
        if op is not None and (op[:3] != move.op[:3] or op[3]._replace(generation=drawn) != move.op[3]):
            return None
        wanted = nonce if op is None else op[3].generation
        register = shared.store.get(REGISTER)
        if register is not None and register.generation == drawn and before.state.shared.store.get(REGISTER) is None:
            shared = shared._replace(store=shared.store.put(REGISTER, register._replace(generation=wanted)))
        processes = tuple(
            p._replace(record=p.record._replace(generation=wanted))
            if p.record is not None and p.record.generation == drawn
            else p
            for p in local[rank].processes
        )
        return with_local(after._replace(state=State(shared, local)), rank, local[rank]._replace(processes=processes))
    place = next((i for i, p in enumerate(local[rank].processes) if p.me is not None and p.me.nonce < 1 << 32), None)
    if place is None:
        return after
    p: Process = local[rank].processes[place]
    assert p.me is not None
    named = Member(rank, p.me.number, nonce)
    status = dict(shared.pulse).get(p.me)
    if status is not None:
        shared = with_pulse(with_pulse(shared, p.me, "silent"), named, status)
    return with_p(after._replace(state=State(shared, local)), rank, place, p._replace(me=named))


def replaced(alive: tuple[tuple[int, ...], ...], rank: int, own: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    return (*alive[:rank], own, *alive[rank + 1 :])
