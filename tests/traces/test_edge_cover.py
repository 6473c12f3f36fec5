"""Edge cover: every transition is taken, in few steps, and model and implementation agree on all of them."""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import pytest

from coxless_model.environment import hardened
from coxless_traces.edge_cover import RESET_COST, Graph, Run, cover, exact_cover, greedy_cover, replay_cover, sample, state_graph
from coxless_traces.targets import target

from ..conftest import needs_etcd


def cost(runs: Sequence[Run]) -> int:
    return sum(map(len, runs)) + RESET_COST * (len(runs) - 1)


def is_a_run(graph: Graph, run: Run) -> bool:
    return run[0].source == graph.initial and all(one.target == other.source for one, other in pairwise(run))


@pytest.mark.parametrize("way", [exact_cover, greedy_cover])
def test_every_edge_is_taken(way: Callable[[Graph], Iterable[Run]]) -> None:
    graph = state_graph(hardened(2, 1))
    runs = list(way(graph))
    assert all(is_a_run(graph, run) for run in runs)
    assert {edge for run in runs for edge in run} == set(graph.all_edges())


def test_the_exact_cover_is_never_dearer() -> None:
    graph = state_graph(hardened(2, 1, crashes=1))
    exact, greedy = exact_cover(graph), list(greedy_cover(graph))
    assert cost(exact) <= cost(greedy) <= 1.5 * cost(exact)


def test_the_wanted_transitions_alone() -> None:
    graph = state_graph(hardened(2, 2, crashes=1))
    runs = cover(graph, lambda edge: edge.action.name == "wake")
    wanted = {edge for edge in graph.all_edges() if edge.action.name == "wake"}
    assert wanted <= {edge for run in runs for edge in run}
    assert sum(map(len, runs)) < 30 * len(wanted)


@pytest.mark.timeout(900)  # minutes on a busy machine
def test_all_transitions_with_a_crash_a_restart_and_a_wrong_suspicion_on_a_dict() -> None:
    system = hardened(2, 1, crashes=1, restarts=1, suspicions=1)
    graph = state_graph(system)
    with target("memory") as store:
        covered = replay_cover(system, store, graph, cover(graph))
    assert covered.taken == covered.there
    assert covered.share == 1.0


def test_a_fixed_share_of_the_runs_over_two_iterations_on_a_dict() -> None:
    # All of them take minutes: make verify replays them, on a TCPStore.
    system = hardened(2, 2, crashes=1, restarts=1, suspicions=1)
    graph = state_graph(system)
    with target("memory") as store:
        covered = replay_cover(system, store, graph, sample(cover(graph), 0.04))
    assert covered.share > 0.09
    assert covered.taken.keys() == covered.there.keys()


@pytest.mark.parametrize("name", ["tcp", pytest.param("etcd", marks=needs_etcd())])
def test_a_fixed_share_of_them_on_a_real_store(name: str) -> None:
    system = hardened(2, 2, crashes=1, restarts=1, suspicions=1)
    graph = state_graph(system)
    with target(name) as store:
        covered = replay_cover(system, store, graph, sample(cover(graph), 0.01))
    assert covered.share > 0.02
