"""One rank of the soak: a small training whose sums are exact, and a log of what this rank saw.

Every number that is added up over the ranks is a multiple of 2**-20 and small, in float64: no sum is ever rounded, so its order does not
matter, and one process that makes the same updates must come to the very same bits. (With gradients of real training it would
come to the same up to rounding.)
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import coxless  # before torch
from coxless.training import DataParallel, batch_at, shard
from coxless.training.trainer import IterationLike

# isort: split
import torch
from torch import Tensor, nn

from .schedule import RANKS

FOLDER, STOP = "SOAK_FOLDER", "stop"
SAMPLES, BATCH, WIDTH = 96, 12, 64
STEP_TIME = 0.03  # seconds
UNIT = 2.0**20


class Log:
    """One line for each thing that happened, written at once: a kill loses none."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, event: str, **details: object) -> None:
        os.write(self._descriptor, json.dumps({"t": time.monotonic(), "event": event, **details}).encode() + b"\n")


def build() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.ParameterDict({"weights": nn.Parameter(torch.zeros(WIDTH, dtype=torch.float64))})
    return model, torch.optim.SGD(model.parameters(), lr=2.0**-5, momentum=0.5)


def gradient(weights: Tensor, rows: Tensor, iteration: int, member: str, size: int) -> Tensor:
    """What a participant adds. It depends on the weights, its samples, the iteration and who it is, so that any other history ends elsewhere.

    The trainer divides it by `size`, which is exact since it was multiplied by it here.
    """
    own = int.from_bytes(hashlib.sha256(f"{iteration} {member}".encode()).digest()[:2], "big")
    columns = torch.arange(WIDTH, dtype=torch.float64)
    wanted = torch.remainder(rows.to(torch.float64).sum() * 7 + columns * own, 257) / 16
    pull = (weights.detach() * len(rows) / BATCH - wanted) / 4
    return torch.round(pull.clamp(-1000, 1000) * UNIT) / UNIT * size


def digest(model: nn.Module) -> str:
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in model.state_dict().values())).hexdigest()[:32]


def alone(updates: list[tuple[int, int, list[str]]]) -> str:
    """The digest of one process that makes these updates without interruption: position, iteration, participants."""
    model, optimizer = build()
    (parameter,) = model.parameters()
    for position, iteration, members in updates:
        batch = batch_at(position, samples=SAMPLES, batch_size=BATCH)
        size = len(members)
        parts = [
            gradient(parameter, shard(batch, index, size), iteration, member, size) / size for index, member in enumerate(members)
        ]
        parameter.grad = torch.stack(parts).sum(dim=0)
        optimizer.step()
    return digest(model)


def main() -> None:
    folder = Path(os.environ[FOLDER])
    rank, restarts = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    log = Log(folder / f"rank{rank}.{restarts}.jsonl")
    log.write("started", pid=os.getpid())
    torch.set_num_threads(1)
    model, optimizer = build()
    (parameter,) = model.parameters()

    def observe(name: str, iteration: IterationLike, details: Mapping[str, object]) -> None:
        if name == "bucket":
            return
        what: dict[str, object] = {"iteration": iteration.number, "me": str(iteration.participants[iteration.index]), **details}
        if name == "decided":
            what["epoch"] = iteration.epoch
            what["participants"] = [str(member) for member in iteration.participants]
            what["holders"] = list(iteration.holders)
            what["record"] = iteration.committed
            what["winner"] = str(getattr(iteration, "winner", None))
        log.write(name, **what)

    crew = coxless.join_from_env(
        heartbeat_interval=timedelta(seconds=0.4),
        heartbeat_timeout=timedelta(seconds=float(os.environ["SOAK_HEARTBEAT_TIMEOUT"])),
        patience=timedelta(seconds=0.15),
        join_timeout=timedelta(seconds=30),
        timeout=timedelta(seconds=120),
    )
    with crew:
        trainer = DataParallel(crew, model, optimizer, timeout=timedelta(seconds=20), observer=observe)
        stop = folder / STOP
        last: int | None = None
        for step in trainer.steps(1 << 40):
            iteration, member = step.iteration.number, str(step.iteration.participants[step.index])
            log.write("step", iteration=iteration, me=member, position=step.position, weights=digest(model))
            if last is None and stop.exists():
                last = int(stop.read_text())
            # By the agreed record, so that all four come to it in the same iteration, and nobody is left behind alone.
            if last is not None and step.position >= last and len(step.iteration.participants) == RANKS:
                break
            time.sleep(STEP_TIME)
            rows = step.shard(batch_at(step.position, samples=SAMPLES, batch_size=BATCH))
            parameter.grad = gradient(parameter, rows, iteration, member, step.size)
    log.write("finished", position=trainer.position, weights=digest(model))


if __name__ == "__main__":
    main()
