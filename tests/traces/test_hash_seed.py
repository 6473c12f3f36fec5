"""The same edge cover, file of transitions and mutant, replayed under another PYTHONHASHSEED: the same result, to the letter."""

import os
import subprocess
import sys

PROGRAM = """
from coxless_model.environment import hardened
from coxless_traces.edge_cover import cover, replay_cover, sample, state_graph
from coxless_traces.replay import Mismatch, told
from coxless_traces.targets import target
from coxless_traces.transitions import digest

system = hardened(2, 1, crashes=1, restarts=1, suspicions=1)
graph = state_graph(system)
runs = sample(cover(graph), 0.05, seed=3)
with target("memory") as store:
    covered = replay_cover(system, store, graph, runs, lambda _: None)
    print(len(graph.edges), covered.runs, covered.steps, sorted(covered.taken.items()))
    for run in runs[:20]:
        print([told(edge.action) for edge in run])
    print(sorted(store.contents().items()))
    print(sorted(map(digest(graph.packed), graph.all_edges())))
    for guard in ("compare_set", "spare_the_register"):
        mutant = hardened(2, 1, missing=(guard,), crashes=1)
        without = state_graph(mutant)
        try:
            replay_cover(mutant, store, without, cover(without))
        except Mismatch as mismatch:
            print(mismatch)
"""


def replayed(seed: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_replay_does_not_depend_on_the_hash_seed() -> None:
    first = replayed("1")
    assert first == replayed("4242")
    assert len(first.splitlines()) > 10
    assert "model and implementation differ" in first
