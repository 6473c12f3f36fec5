"""A depth-first search for an order of everybody's recorded operations that the model admits.

It keeps a cursor for each process (and one for what it deletes beside its training thread) and a state of the model. An operation may come
next if no other one has ended before it began. The model takes the step with the recorded operation and reply, or it does not: then
another order is tried. What nobody can have recorded is inferred (inferred.py). On real recordings the times and the replies leave little
to try, so it is near-linear; and what lies far back is forgotten, so that a long recording needs no more memory than its lines.
"""

from collections.abc import Iterator
from itertools import islice

from coxless_model.environment import Budgets, Hardened
from coxless_model.machine import Action
from coxless_model.process import Setting

from .explained import local, take
from .inferred import in_flight, store_lost
from .model_steps import Run
from .node import Node
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
        world = max((one.world_size for one in recordings), default=1)
        setting = Setting(world, recordings[0].min_ranks if recordings else 1, PLENTY, PLENTY)
        budgets = Budgets(*(PLENTY for _ in Budgets._fields))._replace(lost_replies=0)
        threads = [thread for one in recordings for thread in (one.main, one.clean_up)]
        self.recorded = Run(
            recordings, [*threads, losses or ()], seen_dead, losses is not None, Hardened(setting, budgets, beyond=True)
        )
        self.items = sum(map(len, self.recorded.threads))
        self.until = min((one.until for one in recordings), default=FOREVER)
        self.lines = sum(not item.extra for items in threads for item in items)
        self.steps_back = 0
        self.gave_up = False
        self.deepest: Node | None = None
        self.taken: list[tuple[Action, ...]] = []
        """What was done on the way to the deepest node, from the beginning on; at most KEPT steps."""

    def first(self) -> Node:
        run = self.recorded
        cursors = ((run.environment, 0),) if run.threads[run.environment] else ()
        return Node(cursors, run.system.initial(), ((),) * run.system.setting.ranks)

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
            if (not node.cursors and node.upcoming >= len(self.recorded.recordings)) or (
                self.until < FOREVER and self._beyond(node)
            ):
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
        waiting = [self.recorded.threads[t][at] for t, at in node.cursors]
        coming = self.recorded.recordings[node.upcoming : node.upcoming + 1]
        return all(item.begin > self.until for item in waiting if item.kind not in LOCAL) and all(
            one.begin > self.until for one in coming
        )

    def options(self, node: Node) -> Iterator[Node]:
        node = node._replace(taken=())
        first = second = FOREVER + 1  # the two earliest ends, so that each item is compared with those of the others
        waiting: list[tuple[int, Item]] = []
        for thread, at in node.cursors:
            item = self.recorded.threads[thread][at]
            if item.kind in LOCAL:
                following = local(self.recorded, node, thread, item)
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
        if node.upcoming < len(self.recorded.recordings):
            coming = self.recorded.recordings[node.upcoming]
            if (coming.main[0].begin or coming.begin if coming.main else coming.begin) <= first:
                yield self.activated(node)
                return
        waiting.sort(key=lambda one: (one[1].likely, one[0]))  # what was sent last and has no reply would else come last
        eligible = [(t, item) for t, item in waiting if item.begin <= (second if item.end == first else first)]
        for thread, item in eligible:
            yield from take(self.recorded, node, thread, item)
        yield from in_flight(self.recorded, node)
        if not self.recorded.watched and any(item.kind == "broken" or empties(item) for _, item in eligible):
            yield from store_lost(self.recorded, node)

    def activated(self, node: Node) -> Node:
        """The next recording has begun."""
        index = node.upcoming
        fresh = tuple((t, 0) for t in (2 * index, 2 * index + 1) if self.recorded.threads[t])
        return node._replace(cursors=tuple(sorted((*node.cursors, *fresh))), upcoming=index + 1, taken=())


def empties(item: Item) -> bool:
    """An item that may show an empty store."""
    return item.name in ("create_register", "take_incarnation") or item.result == "PROBE"
