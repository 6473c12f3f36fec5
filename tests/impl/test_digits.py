"""The demo: its plans, and itself with real processes and real kills."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from examples.digits import schedule  # noqa: E402
from examples.digits.history import read  # noqa: E402
from examples.digits.schedule import Kill, Plan  # noqa: E402


def test_a_kill_is_read_as_it_is_written() -> None:
    for text in ("collective@45:1:late", "barrier@120:2:early", "winner@220:never"):
        assert str(schedule.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("collective@45:late", "a winner has no RANK"),
        ("winner@45:1:late", "a winner has no RANK"),
        ("winner@45:early", "cannot be 'early'"),
        ("lunch@45:1:late", "PLACE one of collective, barrier, winner"),
        ("barrier@x:1:late", "is not PLACE@ITERATION"),
    ],
)
def test_what_is_no_kill_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedule.parse(text)


@pytest.mark.parametrize(
    ("kills", "message"),
    [
        (["barrier@50:4:late"], "only ranks 0 to 3"),
        (["barrier@101:1:late"], "within 2 and 100"),
        (["barrier@50:1:late", "collective@40:2:late"], "in the order"),
        (["winner@20:never", "collective@40:2:late"], "has to be the last"),
        (["barrier@20:1:never", "collective@40:1:late"], "killed for good"),
        (["barrier@20:1:never", "collective@40:2:never", "winner@60:never"], "at least two ranks"),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_refused(kills: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        schedule.check(Plan(4, 100, tuple(map(schedule.parse, kills)), 0.0))


def test_drawn_plans_can_be_carried_out_and_repeated() -> None:
    for seed in range(50):
        kills = schedule.draw(seed, 4, 300)
        schedule.check(Plan(4, 300, kills, 0.0))
        assert kills == schedule.draw(seed, 4, 300)
        assert {kill.place for kill in kills} == set(schedule.PLACES)
        assert {kill.back for kill in kills} == set(schedule.RETURNS)


def test_each_process_of_a_rank_has_its_own_kill() -> None:
    first, second, winner = Kill("barrier", 10, 1, "late"), Kill("collective", 20, 1, "early"), Kill("winner", 30, None, "never")
    plan = Plan(3, 40, (first, second, winner), 0.0)
    assert [plan.kill_of(1, restarts) for restarts in range(3)] == [first, second, winner]
    assert plan.kill_of(0, 0) is winner
    assert plan.final_size == 2


def demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "examples.digits", "--out", str(folder), *arguments]
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.processes
def test_the_demo_keeps_its_promises(tmp_path: Path) -> None:
    kills = ["collective@15:3:late", "barrier@40:1:early", "winner@70:never"]
    arguments = ["--steps", "100", "--step-time", "0.05", "--accuracy", "0.9", *(f"--kill={kill}" for kill in kills)]
    done = demo(tmp_path, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the model could have done what was recorded" in done.stdout
    history = read(tmp_path, schedule.load(tmp_path / "plan.json"))
    faults = history.faults()
    assert [str(fault.kill) for fault in faults] == kills
    for fault in faults:
        assert fault.recovery is not None
        if fault.kill.back != "early":
            assert fault.recovery < 5, "the others have to go on at once"  # 0.4 s on an idle machine
    assert len(history.committed) == 100
    # The update that was interrupted in the collective did not count, and the one after it was made by the others.
    assert history.decisions[15].committed is False
    assert history.decisions[16].ranks == (0, 1, 2)


@pytest.mark.processes
def test_the_demo_fails_when_a_promise_is_not_kept(tmp_path: Path) -> None:
    done = demo(tmp_path, "--ranks", "2", "--steps", "10", "--step-time", "0", "--accuracy", "1.01", "--kill", "none")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "NO" in done.stdout
    assert "To run it again: python -m examples.digits --ranks 2 --steps 10" in done.stdout
    assert "lines explained" in done.stdout
    lines = (tmp_path / "rank0.0.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["event"] == "finished"


@pytest.mark.processes
def test_the_script_runs_under_coxless_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "coxless", "run", "--ranks", "2", "examples/digits/train.py", "--steps", "60"]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    said = [line.partition("] ")[2] for line in done.stdout.splitlines() if "test images" in line]
    assert len(said) == 2
    assert len(set(said)) == 1, said


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.processes
def test_the_script_runs_under_torchrun_and_torch_says_nothing(tmp_path: Path) -> None:
    """The line of the README. One rank comes late, so that the other waits in the store until its patience runs out, many times."""
    late = tmp_path / "late.py"
    late.write_text(
        "import os, runpy, sys, time\n"
        "time.sleep(1.5 * int(os.environ['RANK']))\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    readme = (ROOT / "README.md").read_text()
    (line,) = (line for line in readme.splitlines() if " torchrun " in line)
    variables = dict(shlex.split(word)[0].split("=", 1) for word in re.findall(r"([A-Z_]+=(?:'[^']*'|\S+)) ", line))
    assert "TORCH_CPP_LOG_LEVEL" in variables
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TORCH", "COXLESS", "RES_"))}
    environment |= {**variables, "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    command += ["--master-port", str(free_port()), str(late), "examples/digits/train.py", "--steps", "40"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    said = [line for line in done.stdout.splitlines() if "test images" in line]
    assert len(said) == 2
    assert len(set(said)) == 1, said
    assert "c10d" not in done.stderr, done.stderr
    assert "frame #" not in done.stderr, done.stderr


WATCH = (
    "lambda name, *rest: print('torch is imported with', __import__('os').environ.get('TORCH_CPP_LOG_LEVEL'))"
    " if name == 'torch' else None"
)


def test_the_script_imports_coxless_before_torch_so_that_it_is_quiet_without_any_variable() -> None:
    code = "import os, sys, examples.digits.train; print(os.environ['TORCH_CPP_LOG_LEVEL'])"
    code = f"import sys; sys.meta_path.insert(0, type('Watch', (), {{'find_spec': staticmethod({WATCH})}})); {code}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TORCH", "RES_"))}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == "torch is imported with ERROR\nERROR\n", done.stdout + done.stderr
