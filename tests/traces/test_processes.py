"""Traces replayed with each rank as a process: every store operation released by the scheduler, every crash a SIGKILL."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from coxless.errors import StoreUnreachableError
from coxless.protocol import RankState
from coxless.server import StoreServer, start_server
from coxless.store import connect
from coxless_model import itf
from coxless_model.environment import Hardened, hardened
from coxless_model.results import Trace
from coxless_traces.chosen import EVERYTHING, chosen, shown_by
from coxless_traces.commands import replay
from coxless_traces.processes import RankProcessError, RemoteReplica, in_processes
from coxless_traces.replay import Lockstep
from coxless_traces.targets import Torch
from coxless_traces.walks import ONE_OF_EACH, Step, walk

SYSTEM = hardened(2, 3, missing=(), **ONE_OF_EACH)
TRACES = Path(__file__).parents[2] / "traces"

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def server() -> Iterator[StoreServer]:
    with start_server() as running:
        yield running


@pytest.fixture(scope="module")
def walks() -> list[tuple[Step, ...]]:
    return chosen(SYSTEM)


def start(system: Hardened, server: StoreServer) -> Lockstep:
    return Lockstep(system, Torch("tcp", connect(server.address)), in_processes(server.address))


def written(path: Path, steps: tuple[Step, ...]) -> str:
    trace = Trace((steps[0][0], *(after for _, _, after in steps)), tuple(action for _, action, _ in steps))
    itf.write(path, itf.trace_file(SYSTEM, trace, title="A chosen walk"))
    return str(path)


def follow(lockstep: Lockstep, steps: Iterable[Step]) -> None:
    for before, action, after in steps:
        lockstep.step(before, action, after)


def test_the_chosen_walks_show_every_action_and_variant_and_a_crash_before_each_step(walks: list[tuple[Step, ...]]) -> None:
    assert set().union(*(shown_by(SYSTEM, steps) for steps in walks)) >= EVERYTHING


def test_the_chosen_walks_with_a_process_for_each_rank(server: StoreServer, walks: list[tuple[Step, ...]]) -> None:
    for steps in walks:
        lockstep = start(SYSTEM, server)
        try:
            follow(lockstep, steps)
        finally:
            lockstep.close()
        assert lockstep.steps == len(steps)


def test_a_crash_is_sigkill_where_the_process_stands(server: StoreServer, walks: list[tuple[Step, ...]]) -> None:
    lockstep = start(SYSTEM, server)
    try:
        for before, action, after in next(steps for steps in walks if any(action.name == "crash" for _, action, _ in steps)):
            victim = lockstep.ranks[action.rank][0]
            lockstep.step(before, action, after)
            if action.name == "crash":
                break
    finally:
        lockstep.close()
    assert isinstance(victim, RemoteReplica)
    assert victim.process.exitcode == -signal.SIGKILL


def test_a_process_that_ends_by_itself_is_told_by_its_rank(server: StoreServer) -> None:
    lockstep = start(SYSTEM, server)
    try:
        victim = lockstep.ranks[1][0]
        assert isinstance(victim, RemoteReplica) and victim.process.pid is not None
        os.kill(victim.process.pid, signal.SIGTERM)
        with pytest.raises(RankProcessError, match=r"the process of rank 1 ended by itself, before .* \(exit code -15\)"):
            follow(lockstep, walk(SYSTEM, 0, 40))
    finally:
        lockstep.close()


def test_the_command_tells_the_same_story_with_processes_and_without(walks: list[tuple[Step, ...]], tmp_path: Path) -> None:
    file = written(tmp_path / "walk.itf.json", walks[0])
    mutant = str(TRACES / "mutants" / "without_founding.itf.json")
    stories = [CliRunner().invoke(replay, [file, mutant, *more]) for more in ([], ["--processes"])]
    for story in stories:
        assert story.exit_code == 0, story.output
    assert stories[0].output == stories[1].output
    assert f"{len(walks[0])} steps, no difference" in stories[1].output
    assert "The library parts from the mutant, as it has to" in stories[1].output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mutants/without_founding.itf.json", "--target", "memory"], "several processes cannot share memory"),
        (["two_winners.itf.json"], "a trace of the drawn protocol is replayed in one process"),
    ],
)
def test_what_cannot_be_replayed_with_processes_is_one_sentence(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(replay, ["--processes", str(TRACES / arguments[0]), *arguments[1:]])
    assert done.exit_code == 2
    assert said in done.output and "Traceback" not in done.output


def test_a_process_that_finds_no_store_says_so_when_it_is_asked_and_nothing_when_nobody_asks(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Ctrl-C may come just when it has been started and before anybody has a hold of it; then the store goes first."""
    with start_server() as server:
        address = server.address
    asked, abandoned = (RemoteReplica(RankState(rank, 2, 1, nonce="", generation=""), address) for rank in range(2))
    abandoned._pipe.close()
    with pytest.raises(StoreUnreachableError, match=address):
        asked.enter()
    abandoned.process.join(60)
    assert abandoned.process.exitcode == 0
    asked.kill()
    assert "Traceback" not in capfd.readouterr().err


def test_nobody_outlives_a_replay_that_is_interrupted(walks: list[tuple[Step, ...]], tmp_path: Path) -> None:
    """Ctrl-C goes to the whole group, as from a terminal; the group is empty afterwards, and nobody has printed a traceback."""
    file = written(tmp_path / "walk.itf.json", walks[0])
    command = [sys.executable, "-m", "coxless", "replay", "--processes", *[file] * 200]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert running.stdout is not None
    try:
        for line in running.stdout:
            if "take_incarnation" in line:
                break
        os.killpg(running.pid, signal.SIGINT)
        _, errors = running.communicate(timeout=120)
        assert running.returncode == 1, errors
        assert errors.strip() == "Aborted!"
        deadline = time.monotonic() + 60
        while alive(running.pid):
            assert time.monotonic() < deadline, "somebody is still there"
            time.sleep(0.05)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
