"""One minute of it: ranks, store and connections are killed, stopped and cut, and nothing is wrong."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.processes
def test_a_minute_of_faults_breaks_no_promise(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.soak", "--minutes", "0.8", "--seed", "7", "--folder", str(tmp_path / "run"), "--json"]
    done = subprocess.run([*command, "--shrink", "0"], cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["violations"] == {}
    assert int(told["table"]["committed"]) > 50
    assert int(told["table"]["SIGKILL of a rank"].split()[0]) >= 3
