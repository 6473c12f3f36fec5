"""Runs that together take every transition of a model at least once, and their replay on a real store.

Which runs take the fewest steps is the directed Chinese postman problem with resets: every edge once, extra steps where they save
a restart, and an arc back to the initial state from everywhere. For a small graph it is solved exactly, as a minimum cost flow; a
larger one is walked greedily: on along edges that nobody has taken, else to the nearest such edge, else from the start again.
"""

import random
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from time import perf_counter
from typing import NamedTuple

import networkx as nx

from coxless_model.environment import Hardened
from coxless_model.machine import Action, State
from coxless_model.packed import Packed

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
    """Transitions of each action that were replayed."""
    there: Counter[str]
    """Transitions of each action in the graph."""
    runs: int
    steps: int
    seconds: float
    median: float
    """Of one step (s)."""

    @property
    def share(self) -> float:
        return self.taken.total() / self.there.total()


def state_graph(system: Hardened) -> Graph:
    """Every transition of the system that the implementation can take (see `replayable`)."""
    packed = Packed(system)
    edges: dict[int, list[Edge]] = {}
    arrival: dict[int, Edge] = {}
    waiting = deque([packed.initial])
    seen = {packed.initial}
    while waiting:
        source = waiting.popleft()
        own = edges[source] = []
        for action, target in packed.successors(source):
            if action.name == "read_heartbeat" and not replayable(packed.unpack(source), action):
                continue
            edge = Edge(source, action, target)
            own.append(edge)
            if target not in seen:
                seen.add(target)
                arrival[target] = edge
                waiting.append(target)
    return Graph(packed, edges, arrival)


def cover(graph: Graph, wanted: Callable[[Edge], bool] | None = None) -> list[Run]:
    """Runs from the initial state that take every edge, or every wanted one."""
    edges = sum(map(len, graph.edges.values()))
    if wanted is None and edges <= EXACT_BELOW:
        return exact_cover(graph)
    return list(greedy_cover(graph, wanted))


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


def greedy_cover(graph: Graph, wanted: Callable[[Edge], bool] | None = None) -> Iterator[Run]:
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
    system: Hardened, target: Target, graph: Graph, runs: Sequence[Run], on_run: Callable[[int], None] | None = None
) -> Coverage:
    """Replay the runs; raises Mismatch."""
    started = perf_counter()
    unpack = graph.packed.unpack
    taken: set[tuple[int, Action]] = set()
    steps = 0
    times = array("d")
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
        taken.update((edge.source, edge.action) for edge in run)
        if on_run is not None:
            on_run(number)
    there = Counter(edge.action.name for edge in graph.all_edges())
    by_action = Counter(action.name for _, action in taken)
    return Coverage(by_action, there, len(runs), steps, perf_counter() - started, median(times))


def sample(runs: Sequence[Run], share: float, seed: int = 0) -> list[Run]:
    """A fixed part of the runs: the same for the same seed."""
    chosen = random.Random(seed).sample(range(len(runs)), max(1, round(share * len(runs))))
    return [runs[index] for index in sorted(chosen)]
