"""Training on an etcd of three: ranks, the leader and another member are killed, and every promise of the demo is kept."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ...conftest import needs_etcd

ROOT = Path(__file__).resolve().parents[3]

pytestmark = [pytest.mark.processes, needs_etcd()]


def test_the_demo_keeps_its_promises_on_etcd_while_its_members_are_killed(tmp_path: Path) -> None:
    kills = ["collective@20:2:late", "winner@70:never"]
    command = [sys.executable, "-m", "examples.digits", "--etcd", "--out", str(tmp_path), "--ranks", "3", "--steps", "120"]
    command += ["--step-time", "0.08", "--accuracy", "0.9", *(f"--kill={kill}" for kill in kills)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "COLUMNS": "200"}, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the leader after update" in done.stdout
    assert "another member after update" in done.stdout
    assert "the model could have done what was recorded" in done.stdout
