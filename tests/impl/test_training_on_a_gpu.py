"""Training with the model on a GPU: the gradients and the state of a rank that comes back travel as they do without one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]

SCRIPT = Path(__file__).with_name("gpu_rank.py")


def ends_of(backend: str, ranks: int, total: int) -> list[tuple[str, str, str]]:
    """Position, incarnation and digest of the weights of each rank, as it ended."""
    command = [sys.executable, "-m", "coxless", "run", "--ranks", str(ranks), str(SCRIPT), backend, str(total)]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return re.findall(r"position (\d+), incarnation (\d+), weights (\w+)", done.stdout)


def test_a_rank_that_is_killed_comes_back_to_the_same_weights_on_the_gpu() -> None:
    """Gloo takes tensors of a GPU. (NCCL wants a GPU for each rank.)"""
    ends = ends_of("gloo", 3, 1200)
    assert sorted(incarnation for _, incarnation, _ in ends) == ["1", "1", "2"]
    assert {position for position, *_ in ends} == {"1200"}
    assert len({weights for *_, weights in ends}) == 1, ends


def test_nccl_is_a_backend() -> None:
    """One rank: all that one GPU can tell of it."""
    assert [position for position, *_ in ends_of("nccl", 1, 50)] == ["50"]
