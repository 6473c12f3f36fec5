"""A depth-first search for an order of everybody's recorded operations that the model admits.

It keeps a cursor for each process (and one for what it deletes beside its training thread) and a state of the model. An operation may come
next if no other one has ended before it began. The model takes the step with the recorded operation and reply, or it does not: then
another order is tried. What nobody can have recorded is inferred (inferred.py). On real recordings the times and the replies leave little
to try, so it is near-linear; and what lies far back is forgotten, so that a long recording needs no more memory than its lines.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from coxless_model.environment import Budgets, Hardened, outcomes, with_another, with_process, with_pulse
from coxless_model.hardened import slow
from coxless_model.machine import Action, State, describe
from coxless_model.process import RUN_OVER, Process, Setting, start
from coxless_model.records import Member
from coxless_model.steps import STEPS
from coxless_model.store import REGISTER

from .node import Node, moved, replaced, with_budget, with_local, with_named, with_p
from .recorded import FOREVER, LOCAL, Item, Recording

PLENTY = 1 << 40
PATIENCE = 20_000
"""Steps back that the search takes before it gives up without a verdict; and one more for each line."""
BACK = 40_000
"""It does not go back further than this from the deepest point that it has come to."""
KEPT = 20_000
"""Steps of a rejected recording that are kept from its beginning on, for the trace of its prefix."""


class Search:
    """One recording of a run, judged once. `seen_dead`: when the supervisor saw the process of each recording dead; `losses`: the store
    losses that a supervisor saw, None if there was none to see them."""

    def __init__(self, recordings: list[Recording], seen_dead: list[int], losses: tuple[Item, ...] | None = None) -> None:
        self.recordings = recordings
        self.seen_dead = seen_dead
        self.watched = losses is not None
        world = max((one.world_size for one in recordings), default=1)
        setting = Setting(world, recordings[0].min_ranks if recordings else 1, PLENTY, PLENTY)
        budgets = Budgets(*(PLENTY for _ in Budgets._fields))._replace(lost_replies=0)
        self.system = Hardened(setting, budgets, beyond=True)
        self.threads: list[tuple[Item, ...]] = []
        for one in recordings:
            self.threads += [one.main, one.clean_up]
        self.environment = len(self.threads)
        self.threads.append(losses or ())
        self.items = sum(map(len, self.threads))
        until = min((one.until for one in recordings), default=FOREVER)
        self.until = until
        self.lines = sum(not item.extra for items in self.threads[:-1] for item in items)
        self.steps_back = 0
        self.gave_up = False
        self.deepest: Node | None = None
        self.taken: list[tuple[Action, ...]] = []
        """What was done on the way to the deepest node, from the beginning on; at most KEPT steps."""

    def first(self) -> Node:
        state = self.system.initial()
        ranks = self.system.setting.ranks
        cursors = ((self.environment, 0),) if self.threads[self.environment] else ()
        return Node(cursors, state, ((),) * ranks)

    def run(self) -> Node | None:
        """The node at which everything is explained, or None."""
        node = self.first()
        stack = [(node, self.options(node))]
        forgotten: list[tuple[Action, ...]] = []
        failed: dict[tuple[tuple[int, int], ...], list[Node]] = {}
        below = 0
        limit = PATIENCE + self.items
        while stack:
            node, options = stack[-1]
            if (not node.cursors and node.upcoming >= len(self.recordings)) or (self.until < FOREVER and self._beyond(node)):
                return node
            following = next(options, None)
            if following is None:
                if self.deepest is None or node.done > self.deepest.done:
                    self.deepest = node
                    self.taken = [*forgotten, *(each.taken for each, _ in islice(stack, 1, None))][:KEPT]
                stack.pop()
                failed.setdefault(node.cursors, []).append(node.bare())
                self.steps_back += 1
                if self.steps_back > limit or (below and not stack):
                    self.gave_up = True
                    break
                continue
            if any(following.bare() == other for other in failed.get(following.cursors, ())):
                continue
            if following.claims is None and following.state.shared.ghost.void:
                following = following._replace(claims=following.state.shared.ghost.wrong)
            stack.append((following, self.options(following)))
            if len(stack) > 2 * BACK:
                if len(forgotten) < KEPT:
                    forgotten += [each.taken for each, _ in islice(stack, 0 if below else 1, BACK)]
                del stack[:BACK]
                below += BACK
                failed.clear()
        return None

    def _beyond(self, node: Node) -> bool:
        """A file was full at a time before everything that is left."""
        waiting = [self.threads[t][at] for t, at in node.cursors]
        coming = self.recordings[node.upcoming : node.upcoming + 1]
        return all(item.begin > self.until for item in waiting if item.kind not in LOCAL) and all(
            one.begin > self.until for one in coming
        )

    # --- what may come next

    def options(self, node: Node) -> Iterator[Node]:
        node = node._replace(taken=())
        first = second = FOREVER + 1  # the two earliest ends, so that each item is compared with those of the others
        waiting: list[tuple[int, Item]] = []
        for thread, at in node.cursors:
            item = self.threads[thread][at]
            if item.kind in LOCAL:
                following = self.local(node, thread, item)
                if following is not None:
                    yield following
                return  # it touches nothing but its own process: no other order would help
            if item.begin > self.until:
                continue
            if item.end < first:
                first, second = item.end, first
            elif item.end < second:
                second = item.end
            waiting.append((thread, item))
        if node.upcoming < len(self.recordings):
            coming = self.recordings[node.upcoming]
            if (coming.main[0].begin or coming.begin if coming.main else coming.begin) <= first:
                yield self.activated(node)
                return
        waiting.sort(key=lambda one: (one[1].likely, one[0]))  # what was sent last and has no reply would else come last
        eligible = [(t, item) for t, item in waiting if item.begin <= (second if item.end == first else first)]
        for thread, item in eligible:
            yield from self.take(node, thread, item)
        yield from self.in_flight(node, eligible)
        if not self.watched and any(item.kind == "broken" or empties(item) for _, item in eligible):
            yield from self.store_lost(node)

    def activated(self, node: Node) -> Node:
        """The next recording has begun."""
        index = node.upcoming
        fresh = tuple((t, 0) for t in (2 * index, 2 * index + 1) if self.threads[t])
        return node._replace(cursors=tuple(sorted((*node.cursors, *fresh))), upcoming=index + 1, taken=())

    def store_lost(self, node: Node) -> Iterator[Node]:
        shared = node.state.shared
        if not shared.store.entries or not any(
            p.conn == shared.store.instance for rank in node.state.ranks for p in rank.processes
        ):
            return
        for action, after in self.system.shared_steps(shared._replace(pulse=())):
            if action.name == "lose_store":
                yield node._replace(state=State(after._replace(pulse=shared.pulse), node.state.ranks), taken=(action,))

    def local(self, node: Node, thread: int, item: Item) -> Node | None:
        """A line that is no operation on the store."""
        index = thread // 2
        rank = self.recordings[index].rank
        after = moved(node, thread, item, self.threads)
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

    def take(self, node: Node, thread: int, item: Item) -> Iterator[Node]:
        if thread == self.environment:
            for gone in self.store_lost(node):
                yield moved(gone, thread, item, self.threads)._replace(taken=gone.taken)
            if not node.state.shared.store.entries:
                yield moved(node, thread, item, self.threads)
            return
        index = thread // 2
        rank = self.recordings[index].rank
        if item.kind in ("delete", "forgot"):
            yield from self.deleted(node, thread, item, index, rank)
            return
        if index not in node.alive[rank]:
            if index not in node.gone:
                for started in self.started(node, index, rank):
                    for after in self.take(started, thread, item):
                        yield after._replace(taken=(*started.taken, *after.taken))
            return
        place = node.alive[rank].index(index)
        p: Process = node.state.ranks[rank].processes[place]
        if item.emptied and not self.watched and p.conn == node.state.shared.store.instance:
            for gone in self.store_lost(node):
                for after in self.take(gone, thread, item):
                    yield after._replace(taken=(*gone.taken, *after.taken))
            return
        before: tuple[Action, ...] = ()
        if p.at == "arrive":
            said = item.op[2].flag if item.name == "sign" and item.op is not None else "o"
            if index in node.fresh or (index, said) not in node.voted:
                return  # its decision or its vote was not recorded, or it did not do as it voted
            node = node._replace(voted=node.voted - {(index, said)})
        if item.name == "read_arrived" and p.k == 0 and item.timed_out is not None and item.timed_out != p.join_timeout:
            p = p._replace(join_timeout=item.timed_out)
            node = with_p(node, rank, place, p)
            before = (Action(rank, "join_timeout", None, None, second(place)),) if item.timed_out else ()
        for after in self.performed(node, thread, item, index, place, p):
            yield after._replace(taken=(*before, *after.taken)) if before else after

    def performed(self, node: Node, thread: int, item: Item, index: int, place: int, p: Process) -> Iterator[Node]:
        rank = self.recordings[index].rank
        if item.name == "read_heartbeat" and item.kind == "op":
            yield from self.heartbeat(node, thread, item, rank, place)
            return
        broken = item.kind == "broken"
        faulty = broken or item.unsure
        for action, after in self.steps(node, rank, place, item.name, item.op, faulty):
            notes = action.note
            lost_one = any(word in notes for word in ("lost", "not applied", "not delivered"))
            done = moved(after, thread, item, self.threads)
            if broken:
                if item.op is not None and item.op[0] in ("set", "append"):
                    yield from self.noticed(done, index, rank, p)
                elif lost_one:
                    yield done
            elif lost_one:
                if item.unsure:
                    yield self.noted(done, index, rank, p)
            elif item.name == "arrive":
                if action.result is None:
                    yield done  # blocked: its end is the next step
                elif item.result is not None:
                    at_once = moved(done, thread, item, self.threads)  # let through at once
                    yield self.noted(at_once, index, rank, p)._replace(taken=done.taken)
                else:
                    yield self.too_late(done, thread, item, rank, place)
            elif action.result == item.result:
                yield self.noted(done, index, rank, p)

    def too_late(self, node: Node, thread: int, item: Item, rank: int, place: int) -> Node:
        """The last to come, whose reply came when its patience had run out. Beyond the model, in which the last one is let through at once: it is
        counted, and knows no more than any other whose patience ran out. (Seen where a proxy holds replies up.)"""
        p: Process = node.state.ranks[rank].processes[place]
        late = slow(self.system.setting, p._replace(full=False))
        return with_p(moved(node, thread, item, self.threads), rank, place, late)

    def noticed(self, node: Node, index: int, rank: int, before: Process) -> Iterator[Node]:
        """What has no reply was said to have broken: the model notices that at the next operation with a reply, which nobody made."""
        if index not in node.alive[rank]:
            return
        place = node.alive[rank].index(index)
        for action, after in self.steps(node, rank, place, "", None, True):
            if any(word in action.note for word in ("lost", "not applied")):
                yield after._replace(taken=(*node.taken, *after.taken))

    def noted(self, node: Node, index: int, rank: int, before: Process) -> Node:
        """A process that has come to its training step has decided."""
        if index not in node.alive[rank]:
            return node
        p: Process = node.state.ranks[rank].processes[node.alive[rank].index(index)]
        return node._replace(fresh=node.fresh | {index}) if p.at == "arrive" and before.at != "arrive" else node

    # --- suspicion, death and birth

    def heartbeat(self, node: Node, thread: int, item: Item, rank: int, place: int) -> Iterator[Node]:
        """Suspected or not. A process that says no more may have died before; one that goes on was suspected wrongly. An observer that has
        not looked for long may still trust one that another has given up: nobody has to suspect anyone."""
        assert item.op is not None
        index = thread // 2
        p: Process = node.state.ranks[rank].processes[place]
        member: Member = item.op[1][1]
        nodes = [node]
        if item.result:
            nodes = [*self.without(node, member), node]
        status = dict(node.state.shared.pulse).get(member, "silent")
        for each in nodes:
            shared = each.state.shared
            trusted = not item.result and status not in ("alive", "fading")
            if trusted:
                each = each._replace(state=State(with_pulse(shared, member, "fading"), each.state.ranks))
            at = each.alive[rank].index(index)
            for action, after in self.steps(each, rank, at, item.name, item.op):
                if (action.result != "beating") == item.result:
                    if trusted:
                        after = after._replace(state=State(with_pulse(after.state.shared, member, status), after.state.ranks))
                    done = moved(after, thread, item, self.threads)
                    yield self.noted(done, index, rank, p)._replace(taken=(*each.taken, *done.taken))

    def without(self, node: Node, member: Member) -> list[Node]:
        """The node after the member's process has died, which the observer has noticed; none if it goes on."""
        rank = member.rank
        taken: tuple[Action, ...] = ()
        for place, index in enumerate(node.alive[rank]):
            p: Process = node.state.ranks[rank].processes[place]
            if p.me == member and self.exhausted(node, index):
                node = self.crashed(node, rank, place)
                taken = node.taken
                break
        if (member, "fading") not in node.state.shared.pulse:
            return []
        stale = Action(rank, "go_stale", None, member)
        return [
            node._replace(state=State(with_pulse(node.state.shared, member, "silent"), node.state.ranks), taken=(*taken, stale))
        ]

    def exhausted(self, node: Node, index: int) -> bool:
        """Nothing more was recorded of it, and it has not left."""
        return index < node.upcoming and index not in node.gone and all(t != 2 * index for t, _ in node.cursors)

    def started(self, node: Node, index: int, rank: int) -> Iterator[Node]:
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
            if self.exhausted(node, other) or other in node.gone or over:
                node = self.crashed(node, rank, place)
                taken = (*taken, *node.taken)
        if len(node.alive[rank]) > 1:
            return
        name = "second_process" if node.alive[rank] else "restart"
        new = start(node.state.shared.store.instance)
        node = with_local(node, rank, with_another(node.state.ranks[rank], new))
        begun = (*taken, Action(rank, name, None, None))
        yield node._replace(alive=replaced(node.alive, rank, (*node.alive[rank], index)), taken=begun)

    def crashed(self, node: Node, rank: int, place: int) -> Node:
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

    # --- deletions

    def deleted(self, node: Node, thread: int, item: Item, index: int, rank: int) -> Iterator[Node]:
        """From the queue, in any order; or a sweep of what the dead have left behind, which the model does not know. What was forgotten
        leaves the queue, and only the first of it may have been deleted."""
        after = moved(node, thread, item, self.threads)
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
        if key is None or not (queued or self.swept(node, key)):
            return
        shared = after.state.shared
        leaked = tuple(other for other in shared.leaked if other != key)
        after = after._replace(state=State(shared._replace(store=shared.store.drop(key), leaked=leaked), after.state.ranks))
        yield after._replace(taken=(Action(rank, "clean_up", ("delete_key", key), None, "" if queued else "sweep"),))

    def swept(self, node: Node, key: tuple[Any, ...]) -> bool:
        """Whether nobody who can still decide anything needs the key."""
        register = node.state.shared.store.get(REGISTER)
        if register is None:
            return False
        if key[0] == "members":
            return bool(register.epoch != key[1] and key[1].since <= register.iteration)
        return key[0] in ("count", "full", "arrived") and key[1] <= register.iteration - 2

    # --- what a process did before it died, and did not come to record

    def in_flight(self, node: Node, eligible: list[tuple[int, Item]]) -> Iterator[Node]:
        """The last operation of a process that was killed may have taken effect without being recorded, and so may what is left of the
        fast path, which has one line at its end; but not after the process was seen dead."""
        for index in range(max(0, node.upcoming - 64), node.upcoming):
            rank = self.recordings[index].rank
            if self.recordings[index].main or index in node.gone or index in node.alive[rank]:
                continue
            if node.moment <= self.seen_dead[index]:  # it was killed before its first line
                for started in self.started(node, index, rank):
                    yield from self.unrecorded(
                        started, rank, node.alive[rank].index(index) if index in node.alive[rank] else -1, index
                    )
        for rank, own in enumerate(node.alive):
            for place, index in enumerate(own):
                if self.exhausted(node, index) and node.moment <= self.seen_dead[index] and index not in node.spent:
                    yield from self.unrecorded(node, rank, place, index)

    def unrecorded(self, node: Node, rank: int, place: int, index: int) -> Iterator[Node]:
        place = node.alive[rank].index(index) if place < 0 else place
        p: Process = node.state.ranks[rank].processes[place]
        voted = [flag for i, flag in node.voted if i == index]
        if p.at == "arrive":
            if index in node.fresh:
                return
            if not voted:
                voted = ["o"]
        for action, after in self.steps(node, rank, place, "", None):
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

    # --- the model's steps

    def steps(
        self, node: Node, rank: int, place: int, name: str, op: tuple[Any, ...] | None, faulty: bool = False
    ) -> Iterator[tuple[Action, Node]]:
        """The model's steps of one process by this name with this operation (or whatever comes next), and where they lead."""
        local = node.state.ranks[rank]
        p: Process = local.processes[place]
        if p.at not in STEPS or p.at == "done":
            return
        index = node.alive[rank][place]
        setting, shared = self.system.setting, node.state.shared
        if faulty:
            shared = with_budget(shared, 1)
        drawing = p.at in ("take_incarnation", "renew_incarnation", "create_register")
        for move in STEPS[p.at](setting, rank, p):
            if name and move.name != name:
                continue
            if op is not None and move.op != op and not (drawing and move.name == "create_register"):
                continue
            if drawing and move.note == "a lower nonce":
                continue
            for action, after, q in outcomes(setting, rank, shared, p, move):
                if place:
                    action = action._replace(note=", ".join(filter(None, (action.note, second(place)))))
                if faulty:
                    after = with_budget(after, 0)
                followed, became = self.system.followed(after, local, place, q), with_process(local, place, q)
                step = with_local(node._replace(state=State(followed, node.state.ranks)), rank, became)
                if drawing:
                    named = with_named(step, node, rank, self.recordings[index].nonce, move, op)
                    if named is None:
                        continue
                    step, action = named, action._replace(
                        op=op or action.op, result=op[3] if op and action.name == "create_register" and action.result == move.op[3] else action.result
                    )  # fmt: skip
                if len(became.processes) < len(local.processes):
                    alive = replaced(node.alive, rank, tuple(i for i in node.alive[rank] if i != index))
                    step = step._replace(alive=alive, gone=node.gone | {index}, stopped=node.stopped | {index})
                yield action, step._replace(taken=(action,))

    def enabled(self, node: Node, rank: int) -> tuple[str, ...]:
        """What the model's rank could have done there, for people."""
        steps = self.system.local_steps(rank, node.state.shared, node.state.ranks[rank])
        unrecorded = ("crash", "leave", "join_timeout", "restart", "second_process")
        return tuple(describe(step.action) for step in islice(steps, 40) if step.action.name not in unrecorded)


def second(place: int) -> str:
    return "second process" if place else ""


def empties(item: Item) -> bool:
    """An item that may show an empty store."""
    return item.name in ("create_register", "take_incarnation") or item.result == "PROBE"
