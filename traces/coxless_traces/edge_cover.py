"""Runs that together take every transition of a model at least once, and their replay on a real store.

Which runs take the fewest steps is the directed Chinese postman problem with resets: every edge once, extra steps where they save
a restart, and an arc back to the initial state from everywhere. For a small graph it is solved exactly, as a minimum cost flow; a
larger one is walked greedily: on along edges that nobody has taken, else to the nearest such edge, else from the start again.
"""

import random
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from statistics import median
from time import perf_counter
from typing import NamedTuple

import networkx as nx

from coxless_model.environment import Hardened
from coxless_model.machine import Action, State
from coxless_model.packed import LOCAL_BITS, Packed, Steps
from coxless_model.symmetry import Symmetry

from .replay import Lockstep
from .targets import Target
from .walks import replayable

EXACT_BELOW = 3000
"""Edges; network simplex takes seconds up to about here, and far longer than the replay itself for a hundred thousand."""
RESET_COST = 4
"""Steps that a restart of the replay is worth: clearing the store, new connections."""
NEARBY = 400
"""How many states the greedy walk looks through for the next edge before it starts again."""


class Edge(NamedTuple):
    source: int
    action: Action
    target: int


Run = list[Edge]


class Graph(NamedTuple):
    packed: Packed
    edges: dict[int, list[Edge]]
    """Of each state; every reachable state is a key, in the order of its distance from the initial one."""
    arrival: dict[int, Edge]
    """The last edge of a shortest path to each state but the initial one."""

    @property
    def initial(self) -> int:
        return self.packed.initial

    def all_edges(self) -> Iterator[Edge]:
        for edges in self.edges.values():
            yield from edges

    def path(self, state: int) -> Run:
        """A shortest path from the initial state."""
        path: Run = []
        while state != self.initial:
            edge = self.arrival[state]
            path.append(edge)
            state = edge.source
        return path[::-1]


class Coverage(NamedTuple):
    taken: Counter[str]
    """Wanted transitions of each action that were replayed."""
    there: Counter[str]
    """Wanted transitions of each action in the graph."""
    runs: int
    steps: int
    seconds: float
    median: float
    """Of one step (s); 0 when there was none."""
    interrupted: bool = False
    """By Ctrl-C; the run that was under way does not count."""

    @property
    def share(self) -> float:
        there = self.there.total()
        return self.taken.total() / there if there else 1.0


Wanted = Callable[[Edge], bool]


def state_graph(system: Hardened, on_progress: Callable[[int], None] | None = None) -> Graph:
    """Every transition of the system that the implementation can take (see `replayable`). `on_progress` is told the number of states,
    now and then. Raises TooMany when the bounds are too large for the model's integers."""
    packed = Packed(system)
    successors = _Successors(packed)
    edges: dict[int, list[Edge]] = {}
    arrival: dict[int, Edge] = {}
    waiting = deque([packed.initial])
    seen = {packed.initial}
    while waiting:
        source = waiting.popleft()
        if on_progress is not None and len(edges) % 1000 == 0:
            on_progress(len(seen))
        own = edges[source] = []
        for action, target in successors.of(source):
            if action.name == "read_heartbeat" and not replayable(packed.unpack(source), action):
                continue
            edge = Edge(source, action, target)
            own.append(edge)
            if target not in seen:
                seen.add(target)
                arrival[target] = edge
                waiting.append(target)
    return Graph(packed, edges, arrival)


class _Successors:
    """`Packed.successors`, with each actor's steps asked of the model once for each combination of what they depend on."""

    def __init__(self, packed: Packed) -> None:
        self._packed = packed
        # Of each actor and local part: for each set of pieces that its steps looked at, the steps by what was seen there.
        self._known: dict[tuple[int, int], dict[int, dict[int, Steps]]] = {}

    def of(self, key: int) -> Iterator[tuple[Action, int]]:
        packed = self._packed
        number = key >> packed.shift
        wide = packed.wides[number]
        for actor in range(packed.ranks + 1):
            steps = self._steps(actor, wide, key >> (LOCAL_BITS * actor) & packed.local_mask if actor < packed.ranks else 0)
            for action, onto, difference in zip(steps.actions, steps.onto_shared, steps.onto_local, strict=True):
                yield action, key + ((packed.number_of_wide(wide + onto) - number) << packed.shift) + difference

    def _steps(self, actor: int, wide: int, own: int) -> Steps:
        known = self._known.setdefault((actor, own), {})
        for mask, seen in known.items():
            if (steps := seen.get(wide & mask)) is not None:
                return steps
        steps = self._packed.ask(actor, wide, own, self._packed.system.local_steps)
        known.setdefault(steps.mask, {})[wide & steps.mask] = steps
        return steps


def cover(graph: Graph, wanted: Wanted | None = None) -> list[Run]:
    """Runs from the initial state that take every edge, or every wanted one."""
    edges = sum(map(len, graph.edges.values()))
    if wanted is None and edges <= EXACT_BELOW:
        return exact_cover(graph)
    return list(greedy_cover(graph, wanted))


def one_of_each_orbit(graph: Graph) -> Wanted:
    """Of the states that differ only in how the ranks are named one is chosen, the first that was met; all its transitions are wanted.

    Those of the others are the same transitions with the ranks renamed. (But for the order in which heartbeats are asked for, which
    in the implementation is that of the list: so a fixed form of the state, as in symmetry.py, may be one that it never comes to.)
    """
    canonical = Symmetry(graph.packed).canonical
    first: dict[int, int] = {}
    for state in graph.edges:
        first.setdefault(canonical(state), state)
    chosen = frozenset(first.values())
    return lambda edge: edge.source in chosen


# --- Exactly ------------------------------------------------------------------------------------------------------------


def exact_cover(graph: Graph) -> list[Run]:
    """The cheapest runs: a circulation through every edge once, plus the flow of least cost that balances it, cut at the resets."""
    arriving = Counter(edge.target for edge in graph.all_edges())
    flow_graph = nx.DiGraph()
    cheapest: dict[tuple[int, int], Edge] = {}
    for state, edges in graph.edges.items():
        flow_graph.add_node(state, demand=len(edges) - arriving[state])
        for edge in edges:
            if edge.target != state:
                cheapest.setdefault((state, edge.target), edge)
    for source, target in cheapest:
        flow_graph.add_edge(source, target, weight=1)
    resets = [state for state in graph.edges if state != graph.initial]
    for state in resets:
        # In parallel to a step back to the initial state, should there be one, the dearer of the two is never needed.
        if not flow_graph.has_edge(state, graph.initial):
            flow_graph.add_edge(state, graph.initial, weight=RESET_COST)
    _, flow = nx.network_simplex(flow_graph)
    tour = nx.MultiDiGraph()
    tour.add_node(graph.initial)
    for edge in graph.all_edges():
        tour.add_edge(edge.source, edge.target, step=edge)
    for source, targets in flow.items():
        for target, amount in targets.items():
            for _ in range(amount):
                tour.add_edge(source, target, step=cheapest.get((source, target)))
    runs: list[Run] = [[]]
    for source, target, key in nx.eulerian_circuit(tour, source=graph.initial, keys=True):
        step = tour.edges[source, target, key]["step"]
        if step is None:
            runs.append([])
        else:
            runs[-1].append(step)
    return [run for run in runs if run]


# --- Greedily -----------------------------------------------------------------------------------------------------------


def greedy_cover(graph: Graph, wanted: Wanted | None = None) -> Iterator[Run]:
    """States near the start first, and of several edges the one that leads least deep: so runs become long, and few."""
    left = {state: [edge for edge in edges if wanted is None or wanted(edge)] for state, edges in graph.edges.items()}
    depth = {graph.initial: 0}
    for state, edge in graph.arrival.items():
        depth[state] = depth[edge.source] + 1
    for state in graph.edges:
        while left[state]:
            run = graph.path(state)
            for edge in run:
                _take(left, edge)
            here = state
            while True:
                if left[here]:
                    edge = max(left[here], key=lambda edge: (bool(left[edge.target]), -depth[edge.target]))
                    way = [edge]
                elif (nearest := _nearest(graph, left, here, depth)) is not None:
                    way = nearest
                else:
                    break
                run += way
                for edge in way:
                    _take(left, edge)
                here = way[-1].target
            yield run


def _take(left: dict[int, list[Edge]], edge: Edge) -> None:
    own = left[edge.source]
    if edge in own:
        own.remove(edge)


def _nearest(graph: Graph, left: dict[int, list[Edge]], start: int, depth: dict[int, int]) -> Run | None:
    """The way to the nearest state with edges that are left, if it is shorter than the way there from the initial state."""
    back: dict[int, Edge | None] = {start: None}
    distance = {start: 0}
    waiting = deque([start])
    while waiting and len(back) < NEARBY:
        here = waiting.popleft()
        for edge in graph.edges[here]:
            there = edge.target
            if there in back:
                continue
            back[there] = edge
            distance[there] = distance[here] + 1
            if left[there] and distance[there] <= depth[there] + RESET_COST:
                way: Run = []
                last = back[there]
                while last is not None:
                    way.append(last)
                    last = back[last.source]
                return way[::-1]
            waiting.append(there)
    return None


# --- Replaying ----------------------------------------------------------------------------------------------------------


def replay_cover(
    system: Hardened,
    target: Target,
    graph: Graph,
    runs: Sequence[Run],
    on_run: Callable[[int], None] | None = None,
    wanted: Wanted | None = None,
) -> Coverage:
    """Replay the runs; `on_run` is told the number of each when it is done. Ctrl-C ends it with what was replayed. Raises Mismatch."""
    started = perf_counter()
    unpack = lru_cache(maxsize=1 << 17)(graph.packed.unpack)  # the same objects again, whose translations are known
    taken: dict[int, Edge] = {}
    done = steps = 0
    times = array("d")
    interrupted = False
    try:
        for number, run in enumerate(runs):
            lockstep = Lockstep(system, target)
            try:
                before: State = unpack(graph.initial)
                for edge in run:
                    after = unpack(edge.target)
                    began = perf_counter()
                    lockstep.step(before, edge.action, after)
                    times.append(perf_counter() - began)
                    before = after
            finally:
                lockstep.close()
            steps += lockstep.steps
            taken.update((id(edge), edge) for edge in run)  # each is one object of the graph
            done += 1
            if on_run is not None:
                on_run(number)
    except KeyboardInterrupt:
        interrupted = True
    there = Counter(edge.action.name for edge in graph.all_edges() if wanted is None or wanted(edge))
    by_action = Counter(edge.action.name for edge in taken.values() if wanted is None or wanted(edge))
    return Coverage(by_action, there, done, steps, perf_counter() - started, median(times) if times else 0.0, interrupted)


def sample(runs: Sequence[Run], share: float, seed: int = 0) -> list[Run]:
    """A fixed part of the runs: the same for the same seed."""
    if not runs:
        return []
    chosen = random.Random(seed).sample(range(len(runs)), max(1, round(share * len(runs))))
    return [runs[index] for index in sorted(chosen)]
