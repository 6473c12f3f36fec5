"""Promises about runs that go on for ever: L1 and L2, on the full graph of states.

A goal holds if from every reachable state every fair run comes to a state where it is reached, unless it is excused from some
point on. A run that breaks it ends up in one strongly connected component of the states where the goal is not reached, and
stays there. So the components are all there is to look at.

Fairness is weak, for each class of actions: what stays enabled is taken in the end. A run that visits the whole component
over and over is the fairest run in it; so the component holds a fair run exactly if each class that is enabled in all of
its states is taken by one of its own steps. Nobody has to move while no class is enabled: a run may then stay where it is
for ever, which makes a single state without promised steps a component like any other.

The witness is a lasso: a shortest run to the component, and a round in it that never comes to the goal. No symmetry and no
partial-order reduction here: both confuse whose turn it is.
"""

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import NamedTuple

from coxless_model.explore import Search, concrete_run
from coxless_model.machine import Goal, System
from coxless_model.packed import Packed
from coxless_model.results import NO_LIMITS, Limits, Progress, Trace, Verdict


class Lasso(NamedTuple):
    goal: str
    wrong: str
    prefix: Trace
    cycle: Trace
    """A round: it ends in the state in which it starts. A single state if nothing has to happen there any more."""


class LivenessResult(NamedTuple):
    system: str
    verdict: Verdict
    reason: str
    states: int
    components: int
    """Strongly connected components without the goal that were looked at, over all goals."""
    seconds: float
    lassos: tuple[Lasso, ...]
    transitions: int = 0
    depth: int = 0
    memory: int = 0


def check_liveness(
    system: System,
    goals: Iterable[str] | None = None,
    *,
    limits: Limits = NO_LIMITS,
    on_progress: Callable[[Progress], None] | None = None,
) -> LivenessResult:
    """Look for a fair run that never comes to the goal, for each goal (or those named)."""
    started = time.monotonic()
    wanted = None if goals is None else frozenset(goals)
    search = Search(system, symmetry=False, reduction=False, properties=(), every_property=True)
    explored = search.run(limits, on_progress)
    if explored.reason:
        seconds = time.monotonic() - started
        return LivenessResult(system.name, Verdict.UNDETERMINED, explored.reason, explored.states, 0, seconds, ())
    graph = _Graph(search.packed)
    lassos: list[Lasso] = []
    looked_at = 0
    for goal in system.goals:
        if wanted is None or goal.id in wanted:
            number, lasso = _without(graph, goal, search.parents)
            looked_at += number
            lassos += [] if lasso is None else [lasso]
    verdict = Verdict.VIOLATED if lassos else Verdict.HOLDS
    return LivenessResult(
        system.name, verdict, "", explored.states, looked_at, time.monotonic() - started, tuple(lassos)
    )._replace(transitions=explored.transitions, depth=explored.depth, memory=search.memory())


class _Graph:
    """Steps with their fairness classes, as bits."""

    def __init__(self, packed: Packed) -> None:
        self.packed = packed
        self._bits: dict[Hashable, int] = {}
        self._lanes: tuple[dict[int, tuple[int, tuple[tuple[int, int], ...]]], ...] = tuple({} for _ in packed.masks)

    def _pair(self, actor: int, key: int) -> tuple[int, tuple[tuple[int, int], ...]]:
        lane, pair = self._lanes[actor], key & self.packed.masks[actor]
        known = lane.get(pair)
        if known is None:
            enabled = 0
            edges = []
            differences, actions = self.packed.steps(actor, key)
            for difference, action in zip(differences, actions, strict=True):
                kind = self.packed.system.fair(action)
                bit = 0 if kind is None else 1 << self._bits.setdefault(kind, len(self._bits))
                enabled |= bit
                edges.append((difference, bit))
            known = lane[pair] = enabled, tuple(edges)
        return known

    def enabled(self, key: int) -> int:
        """The fairness classes of which an action is enabled."""
        together = 0
        for actor in range(len(self._lanes)):
            together |= self._pair(actor, key)[0]
        return together

    def edges(self, key: int) -> Iterator[tuple[int, int]]:
        """Where the steps lead, and the class of each."""
        for actor in range(len(self._lanes)):
            for difference, bit in self._pair(actor, key)[1]:
                yield key + difference, bit


def _without(graph: _Graph, goal: Goal, parents: dict[int, int]) -> tuple[int, Lasso | None]:
    """The number of components that never come to the goal, and a lasso into the nearest one with a fair run, if there is one."""
    unpack = graph.packed.unpack
    # In the order of the breadth-first search, so that the first state of a component is nearest to the initial one.
    place = {key: number for number, key in enumerate(parents) if not goal.reached(unpack(key))}
    nearest: list[int] | None = None
    number = 0
    for component in components(place, lambda key: [after for after, _ in graph.edges(key) if after in place]):
        number += 1
        component.sort(key=place.__getitem__)
        if nearest is not None and place[component[0]] > place[nearest[0]]:
            continue
        if _fair(graph, component) and not all(goal.excused(unpack(key)) for key in component):
            nearest = component
    if nearest is None:
        return number, None
    path = [nearest[0]]
    while (parent := parents[path[-1]]) >= 0:
        path.append(parent)
    prefix = concrete_run(graph.packed, path[::-1])
    cycle = concrete_run(graph.packed, _round(graph, nearest, lambda key: goal.excused(unpack(key))))
    wrong = "it goes round for ever" if cycle.actions else "nothing is promised to happen any more"
    return number, Lasso(goal.id, f"{wrong}, and {goal.id} does not come about", prefix, cycle)


def _fair(graph: _Graph, component: list[int]) -> bool:
    """Is each class that is enabled all along also taken within the component?"""
    persistent = -1
    for key in component:
        persistent &= graph.enabled(key)
        if not persistent:
            return True
    inside = set(component)
    for key in component:
        for after, bit in graph.edges(key):
            if bit & persistent and after in inside:
                persistent &= ~bit
                if not persistent:
                    return True
    return False


def _round(graph: _Graph, component: list[int], excused: Callable[[int], bool]) -> list[int]:
    """A short round through the component, from its first state, that is fair and not excused."""
    inside = set(component)
    first = component[0]
    walk = [first]
    owed = 0  # the classes that the round has neither taken nor found disabled
    for key in component:
        owed |= graph.enabled(key)
    owed &= graph.enabled(first)
    unexcused = not excused(first)
    while owed or not unexcused:
        leg = _nearest(
            graph,
            inside,
            walk[-1],
            lambda after, bit, owed=owed, asked=not unexcused: (  # type: ignore[misc]
                bool(owed & bit) or bool(owed & ~graph.enabled(after)) or (asked and not excused(after))
            ),
        )
        for after, bit in leg:
            walk.append(after)
            owed &= ~bit & graph.enabled(after)
            unexcused = unexcused or not excused(after)
    if walk[-1] != first:
        walk += [after for after, _ in _nearest(graph, inside, walk[-1], lambda after, bit: after == first)]
    return walk


def _nearest(graph: _Graph, inside: set[int], start: int, wanted: Callable[[int, int], bool]) -> list[tuple[int, int]]:
    """The shortest way within the component to a step that is wanted."""
    came: dict[int, tuple[int, int] | None] = {start: None}
    queue = deque([start])
    while queue:
        key = queue.popleft()
        for after, bit in graph.edges(key):
            if after not in inside:
                continue
            if wanted(after, bit):
                way = [(after, bit)]
                step: int = key
                while (back := came[step]) is not None:
                    way.append((step, back[1]))
                    step = back[0]
                return way[::-1]
            if after not in came:
                came[after] = key, bit
                queue.append(after)
    raise AssertionError("the states of a component reach each other")


def components(nodes: Iterable[int], after: Callable[[int], list[int]]) -> Iterator[list[int]]:
    """Tarjan's strongly connected components, without recursion and without holding the edges: networkx would need some
    hundred bytes for each edge, and there are millions."""
    order: dict[int, int] = {}
    low: dict[int, int] = {}
    stack: list[int] = []
    for root in nodes:
        if root in order:
            continue
        work: list[tuple[int, Iterator[int]]] = []
        _enter(root, order, low, stack)
        work.append((root, iter(after(root))))
        while work:
            node, rest = work[-1]
            for target in rest:
                if target not in order:
                    _enter(target, order, low, stack)
                    work.append((target, iter(after(target))))
                    break
                if target in low:  # still on the stack
                    low[node] = min(low[node], order[target])
            else:
                work.pop()
                if work:
                    parent = work[-1][0]
                    low[parent] = min(low[parent], low[node])
                if low[node] == order[node]:
                    component = []
                    while True:
                        member = stack.pop()
                        del low[member]
                        component.append(member)
                        if member == node:
                            break
                    yield component


def _enter(node: int, order: dict[int, int], low: dict[int, int], stack: list[int]) -> None:
    order[node] = low[node] = len(order)
    stack.append(node)
