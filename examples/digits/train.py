"""A small network learns scikit-learn's handwritten digits, on as many ranks as there are at any moment.

    coxless run --ranks 4 examples/digits/train.py
    TORCH_CPP_LOG_LEVEL=ERROR RES_OPTIONS='timeout:1 attempts:1' torchrun --nproc-per-node 4 examples/digits/train.py

Kill a rank while it runs: the others go on, and what `coxless run` starts again catches up and takes part.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import coxless  # before torch: else torch logs every wait that times out, with a stack trace, and looks up host names for it
from coxless.training import DataParallel, Step, batch_at
from coxless.training.trainer import Observer

# isort: split
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

BATCH = 64  # samples of one update, over all ranks together
HELD_OUT = 360  # of the 1797 images, for the test


@dataclass(frozen=True)
class Result:
    """How a rank ended."""

    iteration: int
    position: int
    accuracy: float
    weights: str
    """A digest of every bit of the model."""


def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and labels to train on, images and labels to test with."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    test, rest = order[:HELD_OUT], order[HELD_OUT:]
    return x[rest], y[rest], x[test], y[test]


def build() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    return model, torch.optim.Adam(model.parameters(), lr=3e-3)


def train(
    steps: int,
    *,
    min_ranks: int = 1,
    heartbeat_timeout: timedelta = timedelta(seconds=30),
    observer: Observer | None = None,
    before_step: Callable[[Step], None] = lambda step: None,
) -> tuple[nn.Module, Result]:
    """Train as the rank that the environment names. `observer` and `before_step` are for those who want to watch, or to disturb."""
    torch.set_num_threads(1)
    x, y, test_x, test_y = data()
    model, optimizer = build()
    with coxless.join_from_env(min_ranks=min_ranks, heartbeat_timeout=heartbeat_timeout) as crew:
        trainer = DataParallel(crew, model, optimizer, bucket_bytes=16 << 10, observer=observer)
        for step in trainer.steps(steps):
            before_step(step)
            # The batch depends on the position alone, and the shards make up the batch, however many take part.
            rows = step.shard(batch_at(step.position, samples=len(x), batch_size=BATCH))
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            # Now the trainer averages the gradients, the crew agrees on the next iteration, and only then the optimizer steps.
        assert crew.iteration is not None
        number = crew.iteration.number
    return model, Result(number, trainer.position, accuracy(model, test_x, test_y), digest(model))


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """The share of images whose label is found."""
    with torch.no_grad():
        return float((model(x).argmax(dim=1) == y).double().mean())


def digest(model: nn.Module) -> str:
    """Equal for two models only when all their bits are."""
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description="Train on scikit-learn's digits as one rank of a crew.")
    parser.add_argument("--steps", type=int, default=300, help="updates to commit")
    parser.add_argument("--min-ranks", type=int, default=1, help="never go on with fewer")
    arguments = parser.parse_args()
    _, result = train(arguments.steps, min_ranks=arguments.min_ranks)
    # In one write: torchrun runs its ranks unbuffered, where print sends the end of the line apart, and two ranks' lines are mixed.
    sys.stdout.write(
        f"iteration {result.iteration}: {result.accuracy:.1%} of the test images are read, weights {result.weights[:12]}\n"
    )


if __name__ == "__main__":
    main()
