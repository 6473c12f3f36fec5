"""Random walks of the model, replayed on every kind of store: model and implementation take the same steps."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from coxless.protocol import Operation
from coxless.protocol.operations import Set
from coxless.server import start_server
from coxless.store import connect
from coxless_model.environment import hardened
from coxless_traces.commands import replay
from coxless_traces.cover_command import cover
from coxless_traces.replay import Lockstep, Mismatch
from coxless_traces.targets import Memory, target
from coxless_traces.walks import replay_walk, walk

from ..conftest import needs_etcd

WHOLE = (Path(__file__).parents[2] / "traces" / "two_winners.itf.json").read_text()
QUIET = {"crashes": 1, "restarts": 1, "suspicions": 1}
ROUGH = QUIET | {
    "failed_votes": 2,
    "lost_replies": 2,
    "second_processes": 1,
    "leaves": 1,
    "dead_marks": 1,
    "join_timeouts": 1,
    "spared_wakes": 1,
}


@pytest.mark.parametrize(("ranks", "faults", "walks"), [(2, QUIET, 100), (2, ROUGH, 200), (3, ROUGH, 60)])
def test_walks_on_a_dict(ranks: int, faults: dict[str, int], walks: int) -> None:
    system = hardened(ranks, 3, missing=(), **faults)
    memory = Memory()
    assert sum(replay_walk(system, memory, seed, 300) for seed in range(walks)) > 30 * walks


@pytest.mark.parametrize("name", ["hash", "tcp", pytest.param("etcd", marks=needs_etcd())])
def test_walks_on_torch_stores(name: str) -> None:
    system = hardened(2, 3, missing=(), **ROUGH)
    with target(name) as store:
        assert sum(replay_walk(system, store, seed, 300) for seed in range(25)) > 700


def test_a_store_that_lies_is_found_out() -> None:
    class Forgetful(Memory):
        def perform(self, operation: Operation) -> object:
            reply = super().perform(operation)
            if operation.step == "wake":
                assert isinstance(operation, Set)
                self.data.pop(operation.key)
            return reply

    system = hardened(2, 2)
    with pytest.raises(Mismatch, match="the store's key global_iteration_barrier:0:full"):
        replay_walk(system, Forgetful(), seed=1, length=300)


def test_a_replay_is_the_same_every_time() -> None:
    system = hardened(2, 2, missing=(), **QUIET)
    seen = []
    for _ in range(2):
        memory = Memory()
        lockstep = Lockstep(system, memory)
        for before, action, after in walk(system, 7, 300):
            lockstep.step(before, action, after)
        seen.append((lockstep.steps, memory.contents()))
    assert seen[0] == seen[1]


def test_a_store_that_runs_already_can_be_given_and_must_be_empty() -> None:
    path = str(Path(__file__).parents[2] / "traces" / "two_winners.itf.json")
    with start_server() as server:
        done = CliRunner().invoke(replay, [path, "--address", server.address, "--quiet"])
        assert done.exit_code == 0, done.output
        connect(server.address).set("k", "1")
        refused = CliRunner().invoke(replay, [path, "--address", server.address])
    assert refused.exit_code == 2
    assert f"the store at {server.address} holds keys already" in refused.output
    assert CliRunner().invoke(replay, [path, "--address", "h:1", "--target", "memory"]).exit_code == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "the file is not an object"),
        (WHOLE.replace('"protocol": "drawn"', '"protocol": "other"'), "unknown protocol 'other'"),
        (WHOLE.replace('"name": "signal_arrival"', '"name": "sing"', 1), "is no run of the model"),
    ],
)
def test_a_trace_that_cannot_be_replayed_is_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "given.itf.json"
    path.write_text(text)
    done = CliRunner().invoke(replay, [str(path), "--target", "memory"])
    assert done.exit_code == 2, done.output
    assert done.output.startswith("Error: ") and said in done.output and len(done.output.splitlines()) == 1


def test_a_store_that_is_not_there_is_one_sentence() -> None:
    with start_server() as server:
        gone = server.address
    done = CliRunner().invoke(cover, ["--iterations", "1", "--address", gone])
    assert done.exit_code == 2
    assert gone in done.output and "Traceback" not in done.output
