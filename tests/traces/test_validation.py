"""Recorded runs are admitted by the model, and are not once anything in them is changed."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

import coxless
from coxless.server import start_server
from coxless_model import itf
from coxless_traces.mutation import MUTATIONS, mutate
from coxless_traces.recorded import FOREVER, read_recordings
from coxless_traces.teeth import bites, table
from coxless_traces.validate_command import validate as command
from coxless_traces.validation import validate

from ..impl.crews import crew_of, in_threads

RANKS, ITERATIONS = 3, 40


def train() -> None:
    """What each rank process does."""
    beat, silence = timedelta(seconds=0.3), timedelta(seconds=3)
    with coxless.join(heartbeat_interval=beat, heartbeat_timeout=silence) as crew:
        for iteration in crew.iterations(until=ITERATIONS):
            if iteration.number % 13 == crew.rank:
                crew.vote(False)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three ranks, one of which is killed right after it was counted at the barrier of iteration 7, and started again."""
    folder: Path = tmp_path_factory.mktemp("recorded")
    command = [sys.executable, "-c", "from tests.traces.test_validation import train; train()"]
    with start_server() as server:
        usual = dict(os.environ, COXLESS_TRACE=str(folder), COXLESS_STORE=server.address, WORLD_SIZE=str(RANKS))
        ranks = [
            subprocess.Popen(command, env={**usual, "RANK": str(rank), **({"COXLESS_FAULT": "arrive@7"} if rank == 1 else {})})
            for rank in range(RANKS)
        ]
        assert ranks[1].wait(120) == -9
        ranks[1] = subprocess.Popen(command, env={**usual, "RANK": "1"})
        assert [rank.wait(120) for rank in ranks] == [0] * RANKS
    return folder


def test_a_recorded_run_is_admitted(recorded: Path) -> None:
    verdict = validate(recorded)
    assert verdict.holds, verdict
    assert verdict.lines > RANKS * ITERATIONS


def test_what_was_sent_last_is_expected_where_it_was_sent(recorded: Path) -> None:
    """Nothing with a reply follows it, so it may take effect at any time. Were it tried last, who sent it would seem to be there still
    when the others already see that it has left, and a wrong suspicion would be inferred that never was."""
    recordings, _ = read_recordings(recorded)
    last = [item for one in recordings for item in one.main if item.end == FOREVER]
    assert last
    assert all(item.begin <= item.likely < FOREVER for item in last)


def test_a_torn_last_line_is_told_and_does_no_harm(recorded: Path, tmp_path: Path) -> None:
    for path in recorded.iterdir():
        text = path.read_bytes()
        killed = b'"left"' not in text
        (tmp_path / path.name).write_bytes(text + b'{"n":99,"t":"o' if killed else text)
    verdict = validate(tmp_path)
    assert verdict.holds
    assert [flaw.what.partition(":")[0] for flaw in verdict.flaws] == ["torn"]


def test_a_missing_line_is_told(recorded: Path, tmp_path: Path) -> None:
    for path in recorded.iterdir():
        lines = path.read_text().splitlines(keepends=True)
        (tmp_path / path.name).write_text("".join(lines[:9] + lines[10:]))
    verdict = validate(tmp_path)
    assert not verdict.holds
    assert any("line 9 is missing" in flaw.what for flaw in verdict.flaws)


def test_the_explained_prefix_of_a_rejected_recording_is_a_trace(recorded: Path, tmp_path: Path) -> None:
    folder = tmp_path / "changed"
    (doubled,) = (mutation for mutation in MUTATIONS if mutation.name == "a decision doubled")
    assert mutate(recorded, folder, doubled, 1) is not None
    result = CliRunner().invoke(command, [str(folder), "--prefix", str(tmp_path / "prefix.itf.json")])
    assert result.exit_code == 1, result.output
    assert "the model could have gone on with" in result.output
    assert str(tmp_path / "prefix.itf.json") in result.output
    trace = itf.read(tmp_path / "prefix.itf.json")
    assert len(trace.states) == len(trace.actions) + 1 > 1


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks to which nothing happens: most of their lines are fast ones."""
    folder: Path = tmp_path_factory.mktemp("healthy")
    with pytest.MonkeyPatch.context() as patch, start_server() as server:
        patch.setenv("COXLESS_TRACE", str(folder))

        def body(rank: int) -> None:
            with crew_of(server.address, rank, 2) as crew:
                for iteration in crew.iterations(until=30):
                    if iteration.number == 20:
                        crew.vote(False)

        in_threads(2, body)
    return folder


@pytest.mark.parametrize(("which", "each"), [("healthy", 12), ("recorded", 9)])
def test_changed_recordings_are_rejected(request: pytest.FixtureRequest, which: str, each: int) -> None:
    """And those few that are admitted do something that the model may do: there is a reason for each. (Seen: none of 160, one of 240.)"""
    found = list(bites(request.getfixturevalue(which), each))
    told = table(found)
    assert {bite.mutation for bite in found} >= {*MUTATIONS} - {one for one in MUTATIONS if "fast" in one.name}, told
    assert "fast" in " ".join(bite.mutation.name for bite in found) or which != "healthy", told
    assert all(bite.why for bite in found if bite.word == "admitted"), told
    assert sum(bite.word == "rejected" for bite in found) >= 0.95 * len(found), told


def test_teeth_are_shown_of_an_admitted_recording_only(healthy: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(command, [str(healthy), "--teeth", "1"])
    assert result.exit_code == 0, result.output
    assert "| a vote changed | 1 |" in result.output
    assert "| all | 8 |" in result.output
    result = CliRunner().invoke(command, [str(tmp_path), "--teeth", "1"])
    assert result.exit_code == 2
    assert "--teeth needs a recording that is admitted; this one is rejected" in result.output
