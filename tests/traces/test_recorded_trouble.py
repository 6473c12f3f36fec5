"""Recordings of what goes wrong around a crew: broken connections, a lost store, a second process, no room for the recording."""

import json
import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from click.testing import CliRunner

import coxless
from coxless import Crew, keys
from coxless.recording import Recorder
from coxless.server import StoreServer, start_server
from coxless_traces import search
from coxless_traces.recorded import read_recordings
from coxless_traces.validate_command import validate as command
from coxless_traces.validation import validate

from ..impl.crews import crew_of, in_threads

Line = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where everything is recorded."""
    monkeypatch.setenv("COXLESS_TRACE", str(tmp_path / "recorded"))
    return tmp_path / "recorded"


def run(
    server: StoreServer,
    iterations: int,
    each: Callable[[Crew, int], None] = lambda crew, number: None,
    patience: timedelta = timedelta(seconds=0.2),
) -> None:
    """Two ranks, in threads."""

    def body(rank: int) -> None:
        with crew_of(server.address, rank, 2, patience=patience) as crew:
            for iteration in crew.iterations(until=iterations):
                each(crew, iteration.number)

    in_threads(2, body)


def lines_of(folder: Path, kind: str) -> list[Line]:
    lines = [json.loads(line) for path in folder.glob("rank*.jsonl") for line in path.read_text().splitlines()]
    return [line for line in lines if line["t"] == kind]


def rewrite(folder: Path, change: Callable[[list[Line]], list[Line]]) -> None:
    """Each recording changed, its lines counted anew."""
    for path in folder.glob("rank*.jsonl"):
        lines = change([json.loads(line) for line in path.read_text().splitlines()])
        path.write_text("".join(json.dumps({**line, "n": n}) + "\n" for n, line in enumerate(lines)))


def decision_doubled(lines: list[Line]) -> list[Line]:
    at = next(at for at, line in enumerate(lines) if line["t"] == "decision")
    return [*lines[:at], lines[at], *lines[at:]]


def test_deletions_that_a_broken_connection_forgets_are_recorded(folder: Path) -> None:
    def each(crew: Crew, number: int) -> None:
        if number == 4:
            crew._housekeeper._connection.shut_down()

    with start_server() as server:
        run(server, 12, each)
    assert validate(folder).word == "admitted"
    forgotten = lines_of(folder, "forgot")
    assert forgotten
    assert all(
        key.startswith("global_iteration_barrier:") or key.startswith("members") for line in forgotten for key in line["a"]
    )


def test_cut_connections_are_admitted(folder: Path) -> None:
    def each(crew: Crew, number: int) -> None:
        if number % 5 == crew.rank:
            crew._driver.connection.shut_down()

    with start_server() as server:
        run(server, 20, each)
    assert lines_of(folder, "broken")
    assert validate(folder).word == "admitted"


def test_a_broken_operation_that_is_not_told_is_missed(folder: Path) -> None:
    """A process that looks at the register again without having lost its connection does what the model never does."""

    def each(crew: Crew, number: int) -> None:
        if number == 5 and crew.rank == 0:
            crew._driver.connection.shut_down()

    with start_server() as server:
        run(server, 8, each)
    assert validate(folder).word == "admitted"
    rewrite(folder, lambda lines: [line for line in lines if line["t"] != "broken"])
    assert validate(folder).word == "rejected"


def test_whoever_was_woken_was_not_spared_the_wake(folder: Path) -> None:
    """The winner leaves the wake out where nobody can have run out of patience, and says so. Here somebody had, in one iteration."""

    def each(crew: Crew, number: int) -> None:
        if number == 12 and crew.rank == 1:
            while not store.check([keys.arrived(12)]):
                time.sleep(0.01)  # until rank 0 has run out of patience
            time.sleep(0.2)  # and on, so that it is in the middle of its next wait

    with start_server() as server:
        store = coxless.connect(server.address)
        run(server, 20, each, patience=timedelta(seconds=0.5))
    assert validate(folder).word == "admitted"
    assert any(line.get("wake") == "spared" for line in lines_of(folder, "fast"))
    woken = [line for line in lines_of(folder, "op") if line["s"] == "await_full" and line["a"] == [keys.full(12)]]
    assert [line["r"] for line in woken] == [True]

    def spared(lines: list[Line]) -> list[Line]:
        return [{**line, "wake": "spared"} if line["t"] == "fast" and line["d"] == line["r"] else line for line in lines]

    rewrite(folder, spared)
    assert validate(folder).word == "rejected"


@pytest.mark.parametrize("said", [{"wake": "forgotten"}, {"wake": "spared", "d": "other"}])
def test_only_the_winner_spares_a_wake_and_says_so_in_one_word(folder: Path, said: Line) -> None:
    with start_server() as server:
        run(server, 8)

    def changed(lines: list[Line]) -> list[Line]:
        return [{**line, **said, **({"d": line["x"]} if "d" in said else {})} if line["t"] == "fast" else line for line in lines]

    rewrite(folder, changed)
    flaws = validate(folder).flaws
    assert any("the wake is either spared by the winner, or not told of" in flaw.what for flaw in flaws), flaws


def test_a_store_that_comes_back_empty_is_admitted(folder: Path) -> None:
    """No supervisor saw the loss: it is inferred."""
    met = threading.Barrier(2)

    with start_server() as server:

        def each(crew: Crew, number: int) -> None:
            if number == 5:
                met.wait(60)
                if crew.rank == 0:
                    server.kill()
                    server.start()
                met.wait(60)

        run(server, 10, each)
    verdict = validate(folder)
    assert verdict.word == "admitted", verdict
    assert not verdict.void, "one of them put the record back"


@pytest.mark.parametrize("watched", [True, False])
def test_a_reply_that_was_lost_with_the_store_is_admitted(folder: Path, watched: bool) -> None:
    """A rank's barrier filled, and it was let through; but before it heard of it, the store died and came back empty. It connects once,
    after that, and not twice, before and after. (A soak found it.)"""
    decided = threading.Event()
    lost: list[str] = []

    def tell(what: str) -> None:
        if supervisor is not None:
            supervisor.event(what, None)

    def each(crew: Crew, number: int) -> None:
        if number != 3 or crew.rank != 0:
            decided.set() if number == 4 else None
            return
        connection = crew._driver.connection
        arrive = connection.arrive

        def held_up(key: str, size: int, patience: timedelta) -> None:
            arrive(key, size, timedelta(seconds=30))
            assert decided.wait(60)
            server.kill()
            tell("store_died")
            server.start()
            tell("store_restarted")
            lost.append(key)
            raise dist.DistNetworkError("as if its reply had been on its way when the store died")

        connection.arrive = held_up

    with start_server() as server:
        supervisor = Recorder(folder, "supervisor") if watched else None
        tell("store_started")
        run(server, 8, each)
    assert lost == [keys.count(3)]
    assert [line["s"] for line in lines_of(folder, "broken") if line["a"][0] == keys.count(3)] == ["arrive"]
    verdict = validate(folder)
    assert verdict.word == "admitted", verdict
    assert not verdict.void, "the other one put the record back"


def test_a_number_taken_by_a_process_that_recorded_nothing_is_inferred_when_it_shows(folder: Path) -> None:
    """It was killed before its first line. The others go on for long before the next process of its rank takes a number that is one too
    high: the order of what they did until then need not be searched for the moment. (A search for it gave up, in a soak.)"""

    def event(n: int, what: str, **more: Any) -> str:
        return (
            json.dumps({"n": n, "t": "event", "what": what, "rank": 2, "pid": 999_999_999, "b": time.monotonic_ns(), **more})
            + "\n"
        )

    def killed() -> None:
        begun = event(0, "started")
        start = {"n": 0, "t": "start", "rank": 2, "world_size": 3, "min_ranks": 1, "nonce": "5eed", "b": time.monotonic_ns()}
        (folder / "rank2.999999999.1.jsonl").write_text(json.dumps(start) + "\n")
        coxless.connect(server.address).add(keys.incarnation(2), 1)
        (folder / "supervisor.1.1.jsonl").write_text(begun + event(1, "exited", code=-9, detail=""))

    far = threading.Event()

    def body(rank: int) -> None:
        for until in (5, None) if rank == 2 else (None,):
            with crew_of(server.address, rank, 3, patience=timedelta(seconds=0.2)) as crew:
                for iteration in crew.iterations(until=until):
                    if iteration.number > 5 and iteration.number % 4 == rank:
                        crew.vote(False)  # so that the others look around
                    if iteration.number == 200:
                        far.set()
                    if iteration.number > 200 and iteration.world_size == 3:
                        break
            if until is not None:
                killed()
                assert far.wait(60)

    with start_server() as server:
        in_threads(3, body)
    (recording,) = folder.glob("rank2.999999999.*")
    verdict = validate(folder)
    assert verdict.word == "admitted", verdict
    assert verdict.steps_back < 1000
    recording.unlink()
    assert validate(folder).word != "admitted", "nobody was there to take the number"


def test_a_superseded_process_is_admitted_to_its_end(folder: Path) -> None:
    with start_server() as server:
        first = crew_of(server.address, 0, 1)
        first.advance()
        first.advance()
        second = crew_of(server.address, 0, 1)
        second.advance()
        with pytest.raises(coxless.SupersededError):
            first.advance()
        second.leave()
        first.leave()
    assert [line["what"] for line in lines_of(folder, "end")] == ["SupersededError"]
    assert validate(folder).word == "admitted"
    rewrite(folder, lambda lines: [line for line in lines if line["t"] != "end" or line["what"] != "SupersededError"])
    assert validate(folder).word == "admitted", "it might have been killed there"


def test_a_file_at_its_limit_leaves_the_rest_undetermined(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COXLESS_TRACE_LIMIT", "9000")
    with start_server() as server:
        run(server, 40)
    assert all(path.stat().st_size <= 9000 + 100 for path in folder.iterdir())
    assert len(lines_of(folder, "full")) == 2
    result = CliRunner().invoke(command, [str(folder)])
    assert result.exit_code == 3, result.output
    assert "nothing more of it was recorded (COXLESS_TRACE_LIMIT)" in result.output
    assert result.output.endswith("verdict: undetermined\n")
    rewrite(folder, decision_doubled)
    assert validate(folder).word == "rejected", "what was recorded before is judged all the same"


def test_a_full_disk_ends_the_recording_and_not_the_training(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """/dev/full takes no byte: there is no room for a line that says so either."""
    real = os.open
    monkeypatch.setattr(
        "coxless.recording.os.open", lambda path, *rest: real("/dev/full" if "rank1" in str(path) else path, *rest)
    )
    with start_server() as server:
        run(server, 6)
    monkeypatch.undo()
    assert "nothing more is recorded" in caplog.text
    assert "No space left on device" in caplog.text
    assert [one.rank for one in read_recordings(folder)[0]] == [0]
    assert validate(folder).word == "rejected", "what rank 1 did is nowhere"


def test_a_disk_that_takes_half_a_line_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line that says so takes its place."""
    recorder = Recorder(tmp_path, "rank0")
    recorder.write("op", what="whole")
    real = os.write
    room = [10]

    def write(descriptor: int, data: bytes) -> int:
        return real(descriptor, data[: room.pop()] if room else data)

    monkeypatch.setattr("coxless.recording.os.write", write)
    recorder.write("op", what="half")
    recorder.write("op", what="never")
    told = [json.loads(line) for line in recorder.path.read_text().splitlines()]
    assert [(line["n"], line["t"]) for line in told] == [(0, "op"), (1, "full")]


def test_a_search_that_gives_up_is_no_verdict(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rejected with all its patience, the same recording is undetermined with none: nothing is claimed either way."""
    with start_server() as server:
        run(server, 8)

    rewrite(folder, decision_doubled)
    assert validate(folder).word == "rejected"
    monkeypatch.setattr(search, "PATIENCE", -(1 << 30))
    verdict = validate(folder)
    assert (verdict.word, verdict.code, verdict.holds) == ("undetermined", 3, False)
    result = CliRunner().invoke(command, [str(folder)])
    assert result.exit_code == 3
    assert "the search gave up after 1 steps back, so nothing is claimed" in result.output
    assert "verdict: undetermined\n" in result.output
