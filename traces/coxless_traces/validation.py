"""Whether the model could have done what was recorded: a depth-first search for an order of everybody's operations that it admits.

The search keeps a cursor for each process (and one for what it deletes beside its training thread) and a state of the model. An
operation may come next if no other one has ended before it began. The model takes the step with the recorded operation and
reply, or it does not: then another order is tried. What was not recorded is inferred: a crash, the operation in flight when it came,
a wrong suspicion, a patience that ran out. On real recordings the times and the replies leave little to try, so it is near-linear.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from coxless_model import environment, itf
from coxless_model.environment import Budgets, Hardened, Rank, with_pulse
from coxless_model.machine import ENVIRONMENT, Action, State, describe, successors
from coxless_model.process import RUN_OVER, Process, Setting, start
from coxless_model.results import Trace
from coxless_model.store import REGISTER

from .recorded import FOREVER, LOCAL, Flaw, Item, Recording, read_recordings
from .supervised import contradictions, read_supervisors

PLENTY = 1 << 40
LONGEST = 2_000
"""States in the trace file of a prefix; of a longer one the end is written."""
PATIENCE = 20_000
"""Steps back that the search takes in all before it gives up without a verdict."""


class Node(NamedTuple):
    """How far the search has come."""

    cursors: tuple[int, ...]
    """Two for each recording: the training thread's, and the clean-up's."""
    state: State
    alive: tuple[tuple[int, ...], ...]
    """For each rank the recordings that its processes in the model stand for, in the model's order."""
    fresh: frozenset[int]
    """Recordings that have come to a decision whose line is still to be read."""
    voted: frozenset[tuple[int, str]]
    """Recordings that have read their vote's line, and the vote."""
    gone: frozenset[int]
    """Recordings whose process has ended."""


class Verdict(NamedTuple):
    admitted: bool
    lines: int
    explained: int
    wrong_suspicions: int
    steps_back: int
    flaws: tuple[Flaw, ...]
    unexplained: Item | None = None
    why: str = ""
    enabled: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    """Properties that the run broke although the model admits it."""
    search: "Search | None" = None
    """Of a rejected recording: what knows how it came as far as it did."""

    @property
    def holds(self) -> bool:
        return self.admitted and not self.broken and not any(not flaw.what.startswith("torn") for flaw in self.flaws)


def validate(folder: Path) -> Verdict:
    """Judge the recordings in a folder."""
    recordings, flaws = read_recordings(folder)
    if not recordings:
        return Verdict(False, 0, 0, 0, 0, tuple(flaws), why="there are no recordings here")
    seen = read_supervisors(folder)
    flaws += [*seen.flaws, *contradictions(seen, recordings)]
    lives = map(seen.life_of, recordings)
    return Search(recordings, tuple(flaws), [FOREVER if life is None else life.seen_dead for life in lives]).run()


class Search:
    def __init__(self, recordings: list[Recording], flaws: tuple[Flaw, ...], seen_dead: list[int]) -> None:
        self.recordings = recordings
        self.flaws = flaws
        self.seen_dead = seen_dead
        """When the supervisor saw the process of each recording dead; for ever later if it was not there to see."""
        world = max(one.world_size for one in recordings)
        setting = Setting(world, recordings[0].min_ranks, PLENTY)
        self.system = Hardened(setting, Budgets(*(PLENTY for _ in Budgets._fields)))
        self.threads: list[tuple[Item, ...]] = []
        for one in recordings:
            self.threads += [one.main, one.clean_up]
        self.items = sum(map(len, self.threads))
        self.lines = sum(map(lines, self.threads))
        self.steps_back = 0
        self.path: tuple[Node, ...] = ()
        """To the deepest dead end so far."""

    def first(self) -> Node:
        ranks = self.system.setting.ranks
        first_of: list[tuple[int, ...]] = []
        for rank in range(ranks):
            own = next((i for i, one in enumerate(self.recordings) if one.rank == rank), None)
            first_of.append(() if own is None else (own,))
        return Node((0,) * len(self.threads), self.system.initial(), tuple(first_of), frozenset(), frozenset(), frozenset())

    def run(self) -> Verdict:
        node = self.first()
        depth = -1
        stack = [(node, self.options(node))]
        failed: set[tuple[tuple[int, ...], State]] = set()
        while stack:
            node, options = stack[-1]
            if sum(node.cursors) == self.items:
                return self.verdict(True, node)
            following = next(options, None)
            if following is None:
                if sum(node.cursors) > depth:
                    self.path, depth = tuple(each for each, _ in stack), sum(node.cursors)
                stack.pop()
                failed.add((node.cursors, node.state))
                self.steps_back += 1
                if self.steps_back > PATIENCE:
                    break
                continue
            if failed and (following.cursors, following.state) in failed:
                continue
            stack.append((following, self.options(following)))
        return self.verdict(False, self.path[-1])

    def verdict(self, admitted: bool, node: Node) -> Verdict:
        wrong = tuple(f"{one.property}: {one.what}" for one in node.state.shared.ghost.wrong)
        spent = PLENTY - node.state.shared.budgets.suspicions
        explained = sum(lines(items[:at]) for items, at in zip(self.threads, node.cursors, strict=True))
        if admitted:
            return Verdict(True, self.lines, explained, spent, self.steps_back, self.flaws, broken=wrong)
        waiting = [self.threads[t][at] for t, at in enumerate(node.cursors) if at < len(self.threads[t])]
        eligible = [item for item in waiting if item.kind in LOCAL] or sorted(waiting, key=lambda item: item.end)
        item = eligible[0]
        rank = self.recordings[self.index(item)].rank
        steps = self.system.local_steps(rank, node.state.shared, node.state.ranks[rank])
        enabled = tuple(describe(step.action) for step in steps if step.action.name not in UNRECORDED)
        why = "the search gave up" if self.steps_back > PATIENCE else "no order of the operations explains this line"
        so_far = (self.lines, explained, spent, self.steps_back, self.flaws)
        return Verdict(False, *so_far, item, why, enabled, wrong, self)

    def prefix(self, title: str) -> itf.TraceFile:
        """The longest explained prefix as a trace. Lines that change nothing in the model's state are left out."""
        changes = [(one, other) for one, other in pairwise(self.path) if one.state != other.state]
        cut = max(0, len(changes) - LONGEST)
        chosen = changes[cut:]
        actions = tuple(self.taken(one, other) for one, other in chosen)
        states = (chosen[0][0].state if chosen else self.path[0].state, *(other.state for _, other in chosen))
        inferred = sum(action.note.startswith("inferred") for action in actions)
        prose = f"The longest prefix of the recording that the model explains: {len(changes)} steps"
        prose += f", of which the last {len(chosen)} are here. " if cut else ". "
        prose += (
            f"{inferred} of them are no single step of the model (a crash that nobody recorded, a sweep): they say 'inferred'."
        )
        return itf.trace_file(self.system, Trace(states, actions), title=title, prose=prose)

    def taken(self, one: Node, other: Node) -> Action:
        """The model's action between two nodes; where it took several, the line that was read, marked as inferred."""
        direct = (action for action, after in successors(self.system, one.state) if after == other.state)
        action = next(direct, None)
        if action is not None:
            return action
        for thread, at in enumerate(one.cursors):
            if other.cursors[thread] > at:
                item = self.threads[thread][at]
                rank = self.recordings[thread // 2].rank
                return Action(rank, item.name or item.kind, item.op, item.result, f"inferred, at {item.file}:{item.line}")
        return Action(ENVIRONMENT, "crash", None, None, "inferred: what was in flight took effect")

    def index(self, item: Item) -> int:
        return next(i for i, one in enumerate(self.recordings) if one.name == item.file)

    # --- what may come next

    def options(self, node: Node) -> Iterator[Node]:
        first = second = FOREVER + 1  # the two earliest ends, so that each item is compared with those of the others
        waiting: list[tuple[int, Item]] = []
        for thread, at in enumerate(node.cursors):
            items = self.threads[thread]
            if at == len(items):
                continue
            item = items[at]
            if item.kind in LOCAL:
                following = self.local(node, thread, item)
                if following is not None:
                    yield following
                return  # it touches nothing but its own process: no other order would help
            if item.end < first:
                first, second = item.end, first
            elif item.end < second:
                second = item.end
            waiting.append((thread, item))
        waiting.sort(key=lambda one: (one[1].likely, one[0]))  # what was sent last and has no reply would else come last
        for thread, item in waiting:
            if item.begin <= (second if item.end == first else first):
                yield from self.take(node, thread, item)
        yield from self.in_flight(node)

    def local(self, node: Node, thread: int, item: Item) -> Node | None:
        """A line that is no operation on the store."""
        index = thread // 2
        rank = self.recordings[index].rank
        if index not in node.alive[rank]:
            return None
        place = node.alive[rank].index(index)
        p: Process = node.state.ranks[rank].processes[place]
        after = moved(node, thread)
        match item.kind:
            case "decision":
                taken = p.at in ("arrive", "done") and p.record is not None and p.record.same(item.result)
                return after._replace(fresh=node.fresh - {index}) if taken and index in node.fresh else None
            case "vote":
                k, flag = item.result
                if p.at != "arrive" or p.k != k or index in node.fresh:
                    return None
                after = after._replace(voted=after.voted | {(index, flag)})
                # A rank may say that it has lost the state.
                return with_process(after, rank, place, p._replace(holds=False)) if flag == "j" else after
            case "left":
                gone = after._replace(gone=after.gone | {index})
                shared = with_pulse(gone.state.shared, p.me, "left")
                return gone._replace(state=State(shared, gone.state.ranks))
            case "end" if item.result == "SupersededError":
                return after if p.at == "stopped" else None
        return after

    def take(self, node: Node, thread: int, item: Item) -> Iterator[Node]:
        index = thread // 2
        rank = self.recordings[index].rank
        if index not in node.alive[rank]:
            for started in self.started(node, index, rank):
                yield from self.take(started, thread, item)
            return
        if item.kind == "delete":
            yield from self.delete(node, thread, item)
            return
        place = node.alive[rank].index(index)
        p: Process = node.state.ranks[rank].processes[place]
        if p.at == "arrive":
            said = item.op[2].flag if item.name == "sign" and item.op is not None else "o"
            if index in node.fresh or (index, said) not in node.voted:
                return  # its decision or its vote was not recorded, or it did not do as it voted
            node = node._replace(voted=node.voted - {(index, said)})
        if item.name == "read_arrived" and p.k == 0:
            p = p._replace(join_timeout=bool(item.timed_out))
            node = with_process(node, rank, place, p)
        if item.name == "read_heartbeat" and item.kind == "op":
            yield from self.heartbeat(node, thread, item, rank, place)
            return
        for action, after in self.steps(node, rank, place):
            if action.name != item.name or action.op != item.op:
                continue
            notes = action.note
            if item.name == "arrive" and item.kind == "op" and not notes and action.result != item.result:
                if action.result is None:
                    yield moved(after, thread)  # blocked: its end is the next step
                continue
            if item.name == "arrive" and item.kind == "op" and not notes and action.result is not None:
                yield self.noted(moved(moved(after, thread), thread), index, rank, p)  # let through at once
                continue
            if item.kind == "broken":
                if "reply lost" in notes or "connection lost" in notes or "not applied" in notes:
                    yield moved(after, thread)
            elif action.result == item.result and not any(word in notes for word in ("lost", "not applied", "not delivered")):
                yield self.noted(moved(after, thread), index, rank, p)

    def noted(self, node: Node, index: int, rank: int, before: Process) -> Node:
        """A process that has come to its training step has decided."""
        place = node.alive[rank].index(index) if index in node.alive[rank] else None
        if place is None:
            return node
        p: Process = node.state.ranks[rank].processes[place]
        return node._replace(fresh=node.fresh | {index}) if p.at == "arrive" and before.at != "arrive" else node

    def heartbeat(self, node: Node, thread: int, item: Item, rank: int, place: int) -> Iterator[Node]:
        """Suspected or not. A process that says no more may have died before; one that goes on was suspected wrongly."""
        assert item.op is not None
        index = thread // 2
        p: Process = node.state.ranks[rank].processes[place]
        member = item.op[1][1]
        nodes = [node]
        if item.result:
            dead = self.without(node, member)
            nodes = [dead, node] if dead is not None else [node]
        for each in nodes:
            at = each.alive[rank].index(index)
            for action, after in self.steps(each, rank, at):
                asked = action.name == "read_heartbeat" and action.op == item.op and "lost" not in action.note
                if asked and (action.result != "beating") == item.result:
                    yield self.noted(moved(after, thread), index, rank, p)

    def without(self, node: Node, member: tuple[int, int, int]) -> Node | None:
        """The node after the member's process has died unnoticed; None if it goes on."""
        rank = member[0]
        for place, index in enumerate(node.alive[rank]):
            p: Process = node.state.ranks[rank].processes[place]
            if p.me == member and self.exhausted(node, index):
                node = self.crashed(node, rank, place)
                break
        if any(entry == (member, "fading") for entry in node.state.shared.pulse):
            return node._replace(state=State(with_pulse(node.state.shared, member, "silent"), node.state.ranks))  # type: ignore[arg-type]
        return None

    def exhausted(self, node: Node, index: int) -> bool:
        return node.cursors[2 * index] == len(self.threads[2 * index]) and index not in node.gone

    def started(self, node: Node, index: int, rank: int) -> Iterator[Node]:
        """A new process of the rank: after the death of the one before, or beside it."""
        if index != min((i for i in self.waiting(node, rank)), default=index):
            return
        while node.alive[rank] and (
            self.exhausted(node, node.alive[rank][0])
            or node.alive[rank][0] in node.gone
            or node.state.ranks[rank].processes[0].at in RUN_OVER
        ):
            node = self.crashed(node, rank, 0)
        if len(node.alive[rank]) > 1:
            return
        local = node.state.ranks[rank]
        new = start(node.state.shared.store.instance)
        node = with_local(node, rank, environment.with_another(local, new))
        yield node._replace(alive=replaced(node.alive, rank, (*node.alive[rank], index)))

    def waiting(self, node: Node, rank: int) -> list[int]:
        return [
            i
            for i, one in enumerate(self.recordings)
            if one.rank == rank and i not in node.alive[rank] and i not in node.gone and node.cursors[2 * i] == 0
        ]

    def crashed(self, node: Node, rank: int, place: int) -> Node:
        local: Rank = node.state.ranks[rank]
        p = local.processes[place]
        left = environment.with_process(local, place, None)
        index = node.alive[rank][place]
        shared = node.state.shared
        if (p.me, "alive") in shared.pulse:
            shared = with_pulse(shared, p.me, "fading")
        state = State(shared, (*node.state.ranks[:rank], left, *node.state.ranks[rank + 1 :]))
        alive = replaced(node.alive, rank, tuple(i for i in node.alive[rank] if i != index))
        return node._replace(state=state, alive=alive, gone=node.gone | {index})

    def delete(self, node: Node, thread: int, item: Item) -> Iterator[Node]:
        """From the queue, in any order; or a sweep of what the dead have left behind, which the model does not know."""
        assert item.op is not None
        key = item.op[1]
        index = thread // 2
        rank = self.recordings[index].rank
        place = node.alive[rank].index(index)
        p: Process = node.state.ranks[rank].processes[place]
        register = node.state.shared.store.get(REGISTER)
        if key in p.queue:
            node = with_process(node, rank, place, p._replace(queue=tuple(other for other in p.queue if other != key)))
        elif key[0] == "members":
            if register is None or register.epoch == key[1] or key[1].since > register.iteration:
                return
        elif key[0] not in ("count", "full", "arrived") or register is None or key[1] > register.iteration - 2:
            return
        shared = node.state.shared._replace(store=node.state.shared.store.drop(key))
        yield moved(node._replace(state=State(shared, node.state.ranks)), thread)

    def in_flight(self, node: Node) -> Iterator[Node]:
        """The last operation of a process that was killed may have taken effect without being recorded, but not after it was seen dead."""
        moment = max((self.threads[t][at - 1].begin for t, at in enumerate(node.cursors) if at), default=0)
        for rank, own in enumerate(node.alive):
            for place, index in enumerate(own):
                if not self.exhausted(node, index) or moment > self.seen_dead[index]:
                    continue
                for action, after in self.steps(node, rank, place):
                    if action.name not in UNRECORDED and not action.note and after.state.shared.store != node.state.shared.store:
                        at = after.alive[rank].index(index) if index in after.alive[rank] else None
                        if at is not None:
                            yield self.crashed(after, rank, at)

    def steps(self, node: Node, rank: int, place: int) -> Iterator[tuple[Action, Node]]:
        """The model's steps of one process, and where they lead."""
        local: Rank = node.state.ranks[rank]
        for step in self.system.local_steps(rank, node.state.shared, local):
            if step.action.name in UNRECORDED or ("second process" in step.action.note) != bool(place):
                continue
            after = with_local(node._replace(state=State(step.shared, node.state.ranks)), rank, step.local)
            if len(step.local.processes) < len(local.processes):
                after = after._replace(
                    alive=replaced(node.alive, rank, tuple(i for i in node.alive[rank] if i != node.alive[rank][place]))
                )
            yield step.action, after


def lines(items: tuple[Item, ...]) -> int:
    """A call of the barrier is one line, and two steps of the model."""
    return sum(item.name != "await_barrier" for item in items)


UNRECORDED = ("crash", "leave", "join_timeout", "restart", "second_process")


def moved(node: Node, thread: int) -> Node:
    at = node.cursors[thread] + 1
    return node._replace(cursors=(*node.cursors[:thread], at, *node.cursors[thread + 1 :]))


def with_local(node: Node, rank: int, local: Rank) -> Node:
    ranks = node.state.ranks
    return node._replace(state=State(node.state.shared, (*ranks[:rank], local, *ranks[rank + 1 :])))


def with_process(node: Node, rank: int, place: int, p: Process) -> Node:
    local: Rank = node.state.ranks[rank]
    return with_local(node, rank, local._replace(processes=(*local.processes[:place], p, *local.processes[place + 1 :])))


def replaced(alive: tuple[tuple[int, ...], ...], rank: int, own: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    return (*alive[:rank], own, *alive[rank + 1 :])
