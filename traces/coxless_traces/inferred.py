"""What nobody can have recorded, and the search infers: a death and when it was noticed, a birth, what was in flight when a process
was killed, a store loss without a supervisor, a reply that came too late."""

from collections.abc import Iterator

from coxless_model.environment import with_another, with_process, with_pulse
from coxless_model.hardened import slow
from coxless_model.machine import Action, State
from coxless_model.process import RUN_OVER, Process, start
from coxless_model.records import Member

from .model_steps import Run, second, steps
from .node import Node, moved, replaced, with_local, with_p
from .recorded import Item

WINDOW = 64
"""So many of the recordings that have begun last may be of processes that were killed before their first line."""


def store_lost(run: Run, node: Node) -> Iterator[Node]:
    shared = node.state.shared
    if not shared.store.entries or not any(p.conn == shared.store.instance for rank in node.state.ranks for p in rank.processes):
        return
    for action, after in run.system.shared_steps(shared._replace(pulse=())):
        if action.name == "lose_store":
            yield node._replace(state=State(after._replace(pulse=shared.pulse), node.state.ranks), taken=(action,))


def exhausted(node: Node, index: int) -> bool:
    """Nothing more was recorded of it, and it has not left."""
    return index < node.upcoming and index not in node.gone and all(t != 2 * index for t, _ in node.cursors)


def crashed(node: Node, rank: int, place: int) -> Node:
    p: Process = node.state.ranks[rank].processes[place]
    index = node.alive[rank][place]
    shared = node.state.shared
    if (p.me, "alive") in shared.pulse:
        shared = with_pulse(shared, p.me, "fading")
    over = p.at in RUN_OVER or index in node.gone
    node = with_local(node, rank, with_process(node.state.ranks[rank], place, None))
    alive = replaced(node.alive, rank, tuple(i for i in node.alive[rank] if i != index))
    taken = () if over else (Action(rank, "crash", None, None, second(place)),)
    return node._replace(state=State(shared, node.state.ranks), alive=alive, gone=node.gone | {index}, taken=taken)


def started(node: Node, index: int, rank: int) -> Iterator[Node]:
    """A new process of the rank: after the death of the one before, or beside it."""
    taken: tuple[Action, ...] = ()
    local = node.state.ranks[rank]
    if not node.alive[rank] and local.processes and local.processes[0].at == "take_incarnation":
        # The process that is there from the beginning in the model.
        if local.processes[0].conn == node.state.shared.store.instance:
            yield node._replace(alive=replaced(node.alive, rank, (index,)), taken=())
            return
        crash = Action(rank, "crash", None, None)
        node = with_local(node, rank, with_process(local, 0, None))
        taken = (crash,)
    for place in range(len(node.alive[rank]) - 1, -1, -1):
        other = node.alive[rank][place]
        over = node.state.ranks[rank].processes[place].at in RUN_OVER
        if exhausted(node, other) or other in node.gone or over:
            node = crashed(node, rank, place)
            taken = (*taken, *node.taken)
    if len(node.alive[rank]) > 1:
        return
    name = "second_process" if node.alive[rank] else "restart"
    new = start(node.state.shared.store.instance)
    node = with_local(node, rank, with_another(node.state.ranks[rank], new))
    begun = (*taken, Action(rank, name, None, None))
    yield node._replace(alive=replaced(node.alive, rank, (*node.alive[rank], index)), taken=begun)


def without(node: Node, member: Member) -> list[Node]:
    """The node after the member's process has died, which the observer has noticed; none if it goes on."""
    rank = member.rank
    taken: tuple[Action, ...] = ()
    for place, index in enumerate(node.alive[rank]):
        p: Process = node.state.ranks[rank].processes[place]
        if p.me == member and exhausted(node, index):
            node = crashed(node, rank, place)
            taken = node.taken
            break
    if (member, "fading") not in node.state.shared.pulse:
        return []
    stale = Action(rank, "go_stale", None, member)
    return [node._replace(state=State(with_pulse(node.state.shared, member, "silent"), node.state.ranks), taken=(*taken, stale))]


def in_flight(run: Run, node: Node) -> Iterator[Node]:
    """The last operation of a process that was killed may have taken effect without being recorded, and so may what is left of the
    fast path, which has one line at its end; but not after the process was seen dead."""
    for index in killed_at_once(run, node):
        if node.moment <= run.seen_dead[index]:
            rank = run.recordings[index].rank
            for begun in started(node, index, rank):
                yield from unrecorded(run, begun, rank, index)
    for rank, own in enumerate(node.alive):
        for index in own:
            if exhausted(node, index) and node.moment <= run.seen_dead[index] and index not in node.spent:
                yield from unrecorded(run, node, rank, index)


def killed_at_once(run: Run, node: Node) -> list[int]:
    """The recordings without a line of what their process did."""
    return [
        index
        for index in range(max(0, node.upcoming - WINDOW), node.upcoming)
        if not run.recordings[index].main and index not in node.gone and index not in node.alive[run.recordings[index].rank]
    ]


def numbers_taken(run: Run, node: Node, rank: int, newer: int) -> Iterator[Node]:
    """The node; and after it those in which processes of the rank that were killed before their first line had taken an incarnation.

    They did so before they were seen dead. But the number is read by no other rank, and by none of this rank until the next process of it takes one: so
    nothing tells at which moment it was, and it is inferred when it shows. To look for the moment itself is to try all orders of what
    the others did until then, seconds perhaps. (Seen in a soak: the search gave up there.)"""
    yield node
    since = max((item.end for item in run.threads[run.environment][: losses_so_far(run, node)]), default=0)
    if not run.watched and node.state.shared.store.instance:
        return  # a number taken before the store was lost is lost with it, and nobody saw when that was
    for index in killed_at_once(run, node):
        one = run.recordings[index]
        if one.rank != rank or index == newer or one.begin < since:
            continue
        if not all(exhausted(node, other) or other in node.gone for other in node.alive[rank]):
            continue  # who is there might have asked for the number
        before = node.taken
        after = next((after for begun in started(node, index, rank) for after in unrecorded(run, begun, rank, index)), None)
        if after is None:
            return
        node = after._replace(taken=(*before, *after.taken))
        yield node


def losses_so_far(run: Run, node: Node) -> int:
    return next((at for thread, at in node.cursors if thread == run.environment), len(run.threads[run.environment]))


def unrecorded(run: Run, node: Node, rank: int, index: int) -> Iterator[Node]:
    place = node.alive[rank].index(index)
    p: Process = node.state.ranks[rank].processes[place]
    voted = [flag for i, flag in node.voted if i == index]
    if p.at == "arrive":
        if index in node.fresh:
            return
        if not voted:
            voted = ["o"]
    for action, after in steps(run, node, rank, place, "", None):
        if action.note and "failed" not in action.note:
            continue
        if p.at == "arrive" and (action.op is None or (action.op[2].flag if action.name == "sign" else "o") not in voted):
            continue
        blocked = action.name in ("arrive", "await_barrier")
        if after.state.shared.store == node.state.shared.store and not (blocked and action.result == "there"):
            continue
        going_on = False
        if index in after.alive[rank]:
            q: Process = after.state.ranks[rank].processes[after.alive[rank].index(index)]
            going_on = blocked or (action.name == "propose_same_epoch" and q.at == "wake")
        after = after._replace(taken=(*node.taken, *after.taken), voted=frozenset(v for v in node.voted if v[0] != index))
        yield after if going_on else after._replace(spent=after.spent | {index})


def noticed(run: Run, node: Node, index: int, rank: int) -> Iterator[Node]:
    """What has no reply was said to have broken: the model notices that at the next operation with a reply, which nobody made."""
    if index not in node.alive[rank]:
        return
    place = node.alive[rank].index(index)
    for action, after in steps(run, node, rank, place, "", None, True):
        if any(word in action.note for word in ("lost", "not applied")):
            yield after._replace(taken=(*node.taken, *after.taken))


def too_late(run: Run, node: Node, thread: int, item: Item, rank: int, place: int) -> Node:
    """The last to come, whose reply came when its patience had run out. Beyond the model, in which the last one is let through at once: it is
    counted, and knows no more than any other whose patience ran out. (Seen where a proxy holds replies up.)"""
    p: Process = node.state.ranks[rank].processes[place]
    late = slow(run.system.setting, p._replace(full=False))
    return with_p(moved(node, thread, item, run.threads), rank, place, late)
