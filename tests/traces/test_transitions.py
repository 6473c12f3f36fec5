"""Files of transitions: what was replayed once is not replayed again, and what a change of the model brings is."""

import gzip
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from coxless_model.environment import hardened
from coxless_traces import transitions
from coxless_traces.cover_command import cover as command
from coxless_traces.edge_cover import Graph, cover, one_of_each_orbit, replay_cover, state_graph
from coxless_traces.replay import Mismatch
from coxless_traces.targets import target

SMALL = ["--ranks", "2", "--iterations", "1", "--suspicions", "1", "--target", "memory"]


def digests(graph: Graph) -> set[str]:
    return set(map(transitions.digest(graph.packed), graph.all_edges()))


def covered(*arguments: str | Path) -> Result:
    return CliRunner().invoke(command, [*SMALL, *map(str, arguments)])


def test_every_transition_has_a_digest_of_its_own() -> None:
    graph = state_graph(hardened(2, 1, crashes=1, restarts=1))
    assert len(digests(graph)) == sum(map(len, graph.edges.values()))


def test_of_a_mutated_system_only_the_altered_transitions_are_replayed(tmp_path: Path) -> None:
    original, without = hardened(2, 1), hardened(2, 1, missing=("compare_set",))
    transitions.save(tmp_path / "known", digests(state_graph(original)))
    known = transitions.read(tmp_path / "known")
    graph = state_graph(without)
    digest = transitions.digest(graph.packed)
    altered = {id(edge) for edge in graph.all_edges() if digest(edge) not in known}
    assert 0 < len(altered) < sum(map(len, graph.edges.values()))
    runs = cover(graph, lambda edge: id(edge) in altered)
    assert altered <= {id(edge) for run in runs for edge in run}
    assert all(any(id(edge) in altered for edge in run) for run in runs)
    with target("memory") as store, pytest.raises(Mismatch, match=r"propose_(same|new)_epoch"):
        replay_cover(without, store, graph, runs)


def test_what_was_saved_is_not_replayed_again(tmp_path: Path) -> None:
    first = covered("--save", tmp_path / "all")
    assert first.exit_code == 0, first.output
    assert "(100.0%)" in first.output
    again = covered("--against", tmp_path / "all", "--save", tmp_path / "again")
    assert again.exit_code == 0, again.output
    assert "0 of 0 transitions" in again.output
    assert (tmp_path / "again").read_bytes() == (tmp_path / "all").read_bytes()


def test_what_a_partial_replay_left_out_is_replayed_by_the_next(tmp_path: Path) -> None:
    assert covered("--share", "0.3", "--save", tmp_path / "part").exit_code == 0
    assert covered("--against", tmp_path / "part", "--save", tmp_path / "rest").exit_code == 0
    everything = digests(state_graph(hardened(2, 1, suspicions=1)))
    part = transitions.read(tmp_path / "part")
    assert part < everything
    assert transitions.read(tmp_path / "rest") == everything


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no gzip",
        gzip.compress(b"", mtime=0),
        gzip.compress(b"\xff\xfe", mtime=0),
        gzip.compress(b"something else\n", mtime=0),
        gzip.compress(f"{transitions.TITLE}\nnot a digest\n".encode(), mtime=0),
        gzip.compress(f"{transitions.TITLE}\n{'0' * 16}\n".encode(), mtime=0)[:-6],
    ],
)
def test_a_file_that_is_none_of_transitions_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad"
    path.write_bytes(content)
    outcome = covered("--against", path)
    assert outcome.exit_code == 2
    assert str(path) in outcome.output
    assert "Traceback" not in outcome.output


def test_under_symmetry_each_transition_or_a_renaming_of_it_is_replayed() -> None:
    system = hardened(3, 1)
    graph = state_graph(system)
    wanted = one_of_each_orbit(graph)
    with target("memory") as store:
        outcome = replay_cover(system, store, graph, cover(graph, wanted), wanted=wanted)
    assert outcome.taken == outcome.there
    everything = sum(map(len, graph.edges.values()))
    assert everything / 6 <= outcome.there.total() < everything / 3


def test_an_interrupted_replay_counts_what_it_has_done() -> None:
    system = hardened(2, 1, suspicions=1)
    graph = state_graph(system)

    def interrupt(number: int) -> None:
        if number == 2:
            raise KeyboardInterrupt

    with target("memory") as store:
        outcome = replay_cover(system, store, graph, cover(graph), interrupt)
    assert outcome.interrupted
    assert outcome.runs == 3
    assert 0 < outcome.share < 1


def test_a_store_that_is_not_there_is_told_before_the_state_graph_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coxless_traces.cover_command.state_graph", lambda *_: pytest.fail("the graph came first"))
    outcome = CliRunner().invoke(command, ["--target", "tcp", "--address", "127.0.0.1:1"])
    assert outcome.exit_code == 2
