"""What the run has to show, checked one by one."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from coxless.training import batch_at, shard
from coxless_traces.validation import validate

from .history import Fault, History
from .train import BATCH, build, data

ROUNDING = 1e-3  # sums in another order, amplified by some hundred steps of Adam


@dataclass(frozen=True)
class Check:
    claim: str
    holds: bool
    shown: str


def checks(history: History, folder: Path, *, accuracy: float) -> Iterator[Check]:
    """Every promise of the run, and whether it was kept."""
    faults = {fault.kill: fault for fault in history.faults()}
    for kill in history.plan.kills:
        yield _killed(str(kill), faults.get(kill))
    yield Check(
        "all agree on every iteration", not history.contradictions, "; ".join(history.contradictions[:3]) or "no contradiction"
    )
    numbers = sorted(history.decisions)
    yield Check("no iteration is skipped", numbers == list(range(1, len(numbers) + 1)), f"1 to {numbers[-1] if numbers else 0}")
    steps = history.plan.steps
    count = len(history.committed)
    yield Check(
        "every update is committed exactly once", count == steps, f"{count} of {steps}, {len(numbers) - 1 - count} tried again"
    )

    ends = {life.rank: life.finished for life in history.survivors}
    shown = ", ".join(f"rank {rank} at {end['iteration']}" for rank, end in ends.items() if end)
    same = len({end["iteration"] for end in ends.values() if end}) == 1
    yield Check(
        f"{history.plan.final_size} ranks end on the same iteration",
        same and len(ends) == history.plan.final_size,
        shown or "none",
    )
    weights = {end["weights"] for end in ends.values() if end}
    yield Check("their weights are bit-identical", len(weights) == 1, " and ".join(name[:12] for name in weights) or "none")
    reached = min((end["accuracy"] for end in ends.values() if end), default=0.0)
    away = max(
        (difference(replay(history), torch.load(path, weights_only=True)) for path in folder.glob("rank*.pt")), default=math.inf
    )
    yield Check(
        "one process that makes the same updates gets the same weights, up to rounding",
        away < ROUNDING,
        f"at most {away:.1e} apart",
    )
    yield Check(f"at least {accuracy:.0%} of the test images are read", reached >= accuracy, f"{reached:.1%}")


def recorded(folder: Path) -> Check:
    """Whether the checked model admits what all processes did on the store. `coxless validate FOLDER` says more."""
    began = time.perf_counter()
    verdict = validate(folder)
    shown = f"{verdict.explained} of {verdict.lines} lines explained in {time.perf_counter() - began:.1f} s"
    for wrong in [f"{flaw.file}:{flaw.line}: {flaw.what}" for flaw in verdict.flaws[:3]] + list(verdict.broken[:3]):
        shown += f"; {wrong}"
    if not verdict.holds:
        shown += f"; coxless validate {folder} says more"
    return Check("the model could have done what was recorded", verdict.holds, shown)


def _killed(name: str, fault: Fault | None) -> Check:
    if fault is None:
        return Check(f"{name} takes place", False, "it did not")
    if fault.recovered is None:
        return Check(f"{name}: the others go on", False, "no update was committed after it")
    match fault.kill.back:
        case "early":
            return Check(
                f"{name}: back before the others went on", fault.back is not None and fault.back_at == fault.gone_at, _back(fault)
            )
        case "late":
            return Check(
                f"{name}: back after they had gone on", fault.back is not None and fault.back_at != fault.gone_at, _back(fault)
            )
    return Check(f"{name}: the others go on without it", fault.back is None, "not back" if fault.back is None else _back(fault))


def _back(fault: Fault) -> str:
    return "not back" if fault.back is None else f"back in iteration {fault.back_at}, after {fault.back - fault.at:.1f} s"


def replay(history: History) -> nn.Module:
    """One process that makes the committed updates, each averaged over as many shards as there were participants."""
    torch.set_num_threads(1)
    x, y, _, _ = data()
    model, optimizer = build()
    for position, decision in enumerate(history.committed):
        optimizer.zero_grad()
        batch = batch_at(position, samples=len(x), batch_size=BATCH)
        size = len(decision.participants)
        for index in range(size):
            rows = shard(batch, index, size)
            (nn.functional.cross_entropy(model(x[rows]), y[rows]) * len(rows) / len(batch)).backward()
        optimizer.step()
    return model


def difference(model: nn.Module, other: dict[str, torch.Tensor]) -> float:
    """The largest difference of a weight."""
    return max(float((tensor - other[name]).abs().max()) for name, tensor in model.state_dict().items())
