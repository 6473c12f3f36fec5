"""Whether the model can do what a line tells, and where that leads."""

from collections.abc import Iterator
from typing import Any

from coxless_model.environment import with_pulse
from coxless_model.machine import Action, State
from coxless_model.process import Process
from coxless_model.records import Member, Signature
from coxless_model.store import REGISTER

from .inferred import losses_so_far, noticed, numbers_taken, started, store_lost, too_late, without
from .model_steps import Run, noted, second, steps
from .node import Node, moved, with_p
from .recorded import Item


def local(run: Run, node: Node, thread: int, item: Item) -> Node | None:
    """A line that is no operation on the store."""
    index = thread // 2
    rank = run.recordings[index].rank
    after = moved(node, thread, item, run.threads)
    if index not in node.alive[rank]:
        over = index in node.gone and item.kind in ("end", "left")
        superseded = item.kind != "end" or item.result != "SupersededError" or index in node.stopped
        if over and superseded:
            return after
        return after if item.kind in ("end", "left") and index not in node.gone and item.result != "SupersededError" else None
    place = node.alive[rank].index(index)
    p: Process = node.state.ranks[rank].processes[place]
    match item.kind:
        case "decision":
            record, members, me = item.result
            agreed = p.at in ("arrive", "done") and p.record is not None and p.record.same(record) and p.me == me
            agreed = agreed and members in (None, p.members) and index in node.fresh and index not in node.gone
            return after._replace(fresh=node.fresh - {index}) if agreed else None
        case "vote":
            k, flag = item.result
            if p.at != "arrive" or p.k != k or index in node.fresh or index in node.gone:
                return None
            after = after._replace(voted=after.voted | {(index, flag)})
            # Beyond the model, which knows a failed step no closer: a rank may have lost the state in it, or have received it before it
            # failed. What it says is what counts from here on.
            return after if flag == "o" else with_p(after, rank, place, p._replace(holds=flag == "f"))
        case "left":
            gone = after._replace(gone=after.gone | {index}, taken=(Action(rank, "leave", None, None, second(place)),))
            return gone._replace(state=State(with_pulse(gone.state.shared, p.me, "left"), gone.state.ranks))
        case "end" if item.result == "SupersededError":
            return after if p.at == "stopped" else None
    return after


def take(run: Run, node: Node, thread: int, item: Item) -> Iterator[Node]:
    if thread == run.environment:
        for gone in store_lost(run, node):
            yield moved(gone, thread, item, run.threads)._replace(taken=gone.taken)
        if not node.state.shared.store.entries:
            yield moved(node, thread, item, run.threads)
        return
    index = thread // 2
    rank = run.recordings[index].rank
    if item.kind in ("delete", "forgot"):
        yield from deleted(run, node, thread, item, index, rank)
        return
    if index not in node.alive[rank]:
        if index not in node.gone:
            for earlier in numbers_taken(run, node, rank, index):
                for begun in started(earlier, index, rank):
                    for after in take(run, begun, thread, item):
                        yield after._replace(taken=(*earlier.taken, *begun.taken, *after.taken))
        return
    place = node.alive[rank].index(index)
    p: Process = node.state.ranks[rank].processes[place]
    if item.emptied and not run.watched and p.conn == node.state.shared.store.instance:
        # It broke because the store was lost; or, after this, its reply was lost with the store.
        for gone in store_lost(run, node):
            for after in take(run, gone, thread, item):
                yield after._replace(taken=(*gone.taken, *after.taken))
    if p.at == "recover" and p.conn != node.state.shared.store.instance and connected_after(run, node, thread):
        for connected in noticed(run, node, index, rank):
            for after in take(run, connected, thread, item):
                yield after._replace(taken=(*connected.taken, *after.taken))
        return
    before: tuple[Action, ...] = ()
    if p.at == "arrive":
        what = item.op[-1] if item.op is not None else None
        said = what.flag if isinstance(what, Signature) else "o"
        if index in node.fresh or (index, said) not in node.voted:
            return  # its decision or its vote was not recorded, or it did not do as it voted
        node = node._replace(voted=node.voted - {(index, said)})
    if item.name == "read_arrived" and p.k == 0 and item.timed_out is not None and item.timed_out != p.join_timeout:
        p = p._replace(join_timeout=item.timed_out)
        node = with_p(node, rank, place, p)
        before = (Action(rank, "join_timeout", None, None, second(place)),) if item.timed_out else ()
    for after in performed(run, node, thread, item, index, place, p):
        yield after._replace(taken=(*before, *after.taken)) if before else after


def connected_after(run: Run, node: Node, thread: int) -> bool:
    """Whether this process may have connected again only after the store was lost: what it did last broke, and had not come to its end before.

    The model connects again as soon as a reply is lost, and would notice the loss at the next operation, which in fact was the first on the
    new connection. (Seen in a soak: a rank had not got the reply to its barrier, which had filled, when the store died 25 ms later.)
    """
    at = next(at for one, at in node.cursors if one == thread)
    last = run.threads[thread][at - 1] if at else None
    if last is None or last.kind != "broken":
        return False
    losses = run.threads[run.environment][: losses_so_far(run, node)]
    return not losses or losses[-1].begin <= last.end


def performed(run: Run, node: Node, thread: int, item: Item, index: int, place: int, p: Process) -> Iterator[Node]:
    rank = run.recordings[index].rank
    if item.name == "read_heartbeat" and item.kind == "op":
        yield from heartbeat(run, node, thread, item, rank, place)
        return
    broken = item.kind == "broken"
    faulty = broken or item.unsure
    for action, after in steps(run, node, rank, place, item.name, item.op, faulty):
        notes = action.note
        lost_one = any(word in notes for word in ("lost", "not applied", "not delivered"))
        done = moved(after, thread, item, run.threads)
        if broken:
            if item.op is not None and item.op[0] in ("set", "append"):
                yield from noticed(run, done, index, rank)
            elif lost_one:
                yield done
        elif lost_one:
            if item.unsure:
                yield noted(done, index, rank, p)
        elif item.name == "arrive":
            if action.result is None:
                yield done  # blocked: its end is the next step
            elif item.result is not None:
                at_once = moved(done, thread, item, run.threads)  # let through at once
                yield noted(at_once, index, rank, p)._replace(taken=done.taken)
            else:
                yield too_late(run, done, thread, item, rank, place)
        elif action.result == item.result:
            yield noted(done, index, rank, p)


def heartbeat(run: Run, node: Node, thread: int, item: Item, rank: int, place: int) -> Iterator[Node]:
    """Suspected or not. A process that says no more may have died before; one that goes on was suspected wrongly. An observer that has
    not looked for long may still trust one that another has given up: nobody has to suspect anyone."""
    assert item.op is not None
    index = thread // 2
    p: Process = node.state.ranks[rank].processes[place]
    member: Member = item.op[1][1]
    nodes = [node]
    if item.result:
        nodes = [*without(node, member), node]
    status = dict(node.state.shared.pulse).get(member, "silent")
    for each in nodes:
        shared = each.state.shared
        trusted = not item.result and status not in ("alive", "fading")
        if trusted:
            each = each._replace(state=State(with_pulse(shared, member, "fading"), each.state.ranks))
        at = each.alive[rank].index(index)
        for action, after in steps(run, each, rank, at, item.name, item.op):
            if (action.result != "beating") == item.result:
                if trusted:
                    after = after._replace(state=State(with_pulse(after.state.shared, member, status), after.state.ranks))
                done = moved(after, thread, item, run.threads)
                yield noted(done, index, rank, p)._replace(taken=(*each.taken, *done.taken))


def deleted(run: Run, node: Node, thread: int, item: Item, index: int, rank: int) -> Iterator[Node]:
    """From the queue, in any order; or a sweep of what the dead have left behind, which the model does not know. What was forgotten
    leaves the queue, and only the first of it may have been deleted."""
    after = moved(node, thread, item, run.threads)
    doomed = item.result if item.kind == "forgot" else (item.op[1],) if item.op is not None else ()
    queued = False
    if index in node.alive[rank]:
        place = node.alive[rank].index(index)
        p: Process = node.state.ranks[rank].processes[place]
        queued = any(key in p.queue for key in doomed)
        if queued:
            after = with_p(after, rank, place, p._replace(queue=tuple(key for key in p.queue if key not in doomed)))
    if item.kind == "forgot":
        yield after
        doomed = doomed[:1]
    key = doomed[0] if doomed else None
    if key is None or not (queued or swept(node, key)):
        return
    shared = after.state.shared
    leaked = tuple(other for other in shared.leaked if other != key)
    after = after._replace(state=State(shared._replace(store=shared.store.drop(key), leaked=leaked), after.state.ranks))
    yield after._replace(taken=(Action(rank, "clean_up", ("delete_key", key), None, "" if queued else "sweep"),))


def swept(node: Node, key: tuple[Any, ...]) -> bool:
    """Whether nobody who can still decide anything needs the key."""
    register = node.state.shared.store.get(REGISTER)
    if register is None:
        return False
    if key[0] == "members":
        return bool(register.epoch != key[1] and key[1].since <= register.iteration)
    return key[0] in ("count", "full", "arrived") and key[1] <= register.iteration - 2
