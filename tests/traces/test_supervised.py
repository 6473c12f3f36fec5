"""What the supervisor recorded is read, and held against what the ranks recorded."""

import json
import sys
from pathlib import Path

from coxless.supervisor import Supervisor, never
from coxless_traces.recorded import FOREVER, Item, Recording
from coxless_traces.supervised import contradictions, read_supervisors

NAME = "supervisor.1.1.jsonl"


def written(folder: Path, *events: dict[str, object]) -> Path:
    usual = {"t": "event", "rank": 0, "pid": 7, "code": None, "detail": ""}
    lines = [json.dumps({"n": n, **usual, "b": 10 * n, **event}) for n, event in enumerate(events)]
    (folder / NAME).write_text("".join(line + "\n" for line in lines))
    return folder


def recording(end: int, pid: int = 7, members: tuple[str, ...] = ("0.1-ab",)) -> Recording:
    item = Item(f"rank0.{pid}.1.jsonl", 2, "op", "arrive", ("read", ("register",)), None, end, end)
    return Recording(item.file, 0, pid, 1, 1, 0, (item,), (), members)


LIFE: tuple[dict[str, object], ...] = (
    {"what": "started"},
    {"what": "exited", "signal": 9},
    {"what": "marked_dead", "detail": "0.1-ab"},
    {"what": "restarted", "pid": 8},
    {"what": "exited", "pid": 8, "code": 0},
)


def test_a_supervisor_records_the_processes_that_it_sees(tmp_path: Path) -> None:
    supervisor = Supervisor(
        [sys.executable, "-c", "raise SystemExit(3)"], ranks=2, restart=never, environment={"COXLESS_TRACE": str(tmp_path)}
    )
    assert supervisor.run() == 1
    seen = read_supervisors(tmp_path)
    assert not seen.flaws
    assert [(life.rank, life.code) for life in seen.lives] == [(0, 3), (1, 3)]
    assert all(life.begin < life.seen_dead < FOREVER for life in seen.lives)


def test_a_plausible_recording_has_no_flaw(tmp_path: Path) -> None:
    seen = read_supervisors(written(tmp_path, *LIFE))
    recordings = [recording(9), recording(35, pid=8, members=("0.2-cd",))]
    assert not seen.flaws
    assert not list(contradictions(seen, recordings))
    assert [life.seen_dead for life in map(seen.life_of, recordings) if life is not None] == [10, 40]


def test_what_a_process_did_after_it_was_seen_dead_is_told(tmp_path: Path) -> None:
    seen = read_supervisors(written(tmp_path, *LIFE))
    (flaw,) = contradictions(seen, [recording(11), recording(35, pid=8, members=("0.2-cd",))])
    assert (flaw.file, flaw.line) == ("rank0.7.1.jsonl", 2)
    assert "was seen dead before" in flaw.what


def test_a_member_that_lives_is_not_marked_dead(tmp_path: Path) -> None:
    seen = read_supervisors(written(tmp_path, *LIFE[:2], {"what": "restarted", "pid": 8}, {**LIFE[2], "detail": "0.2-cd"}))
    (flaw,) = contradictions(seen, [recording(9), recording(35, pid=8, members=("0.2-cd",))])
    assert "0.2-cd is marked dead, and its process was not seen to end" in flaw.what


def test_the_missing_recording_of_a_process_that_ended_well_is_told(tmp_path: Path) -> None:
    (flaw,) = contradictions(read_supervisors(written(tmp_path, *LIFE)), [recording(9)])
    assert "process 8 of rank 0 ended well, and its recording is missing" in flaw.what


def test_no_line_and_no_file_is_skipped(tmp_path: Path) -> None:
    folder = written(tmp_path, {"what": "vanished"}, {"t": "guess"}, {"what": "exited"}, {"what": "marked_dead"})
    (folder / "other.jsonl").write_text("{}\n")
    told = [flaw.what for flaw in read_supervisors(folder).flaws]
    assert len(told) == 5
    assert any("neither a rank nor a supervisor" in what for what in told)
