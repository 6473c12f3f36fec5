"""train.py under the drill: a rank that writes down what happens to it, and kills itself where the plan says so.

A SIGKILL from outside cannot hit a place that lasts microseconds. So the process sends it to itself, at the exact place, and nothing
of it runs on: to the others and to the kernel it makes no difference.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from .schedule import Kill, Plan, load

if TYPE_CHECKING:
    from coxless.training import Step
    from coxless.training.trainer import IterationLike

PLAN = "DIGITS_PLAN"
SLOW_END = 0.85  # from this share of the steps on, the crew waits for those who are to come back
SLOW_STEP = 0.5  # seconds


class Drill:
    """One process of a run: `rank`, started for the n-th time (`restarts`, from 0)."""

    def __init__(self, plan: Plan, folder: Path, rank: int, restarts: int) -> None:
        self.plan = plan
        self.kill: Kill | None = plan.kill_of(rank, restarts)
        self._file = (folder / f"rank{rank}.{restarts}.jsonl").open("a", buffering=1, encoding="utf-8")

    def arm(self, environment: dict[str, str] | os._Environ[str]) -> None:
        """Prepares what is to happen inside the library. To be called before the crew is joined."""
        if self.kill is None:
            return
        if self.kill.place == "barrier":
            environment["COXLESS_FAULT"] = f"arrive@{self.kill.iteration}"
        elif self.kill.place == "winner":
            environment["COXLESS_FAULT"] = f"won@{self.kill.iteration}"
        if self.kill.back == "early":
            # The supervisor does not learn who this process is in the crew, so it cannot tell the others of its death.
            environment.pop("COXLESS_MEMBER_FILE", None)

    def write(self, event: str, **details: object) -> None:
        """One line, with the time on a clock that all processes of the machine share."""
        self._file.write(json.dumps({"t": time.monotonic(), "event": event, **details}) + "\n")

    def observe(self, name: str, iteration: IterationLike, details: Mapping[str, object]) -> None:
        kill, me = self.kill, str(iteration.participants[iteration.index])
        if name == "bucket":
            # When bucket 1 begins, bucket 0 has been exchanged, and the others are about to wait in this one.
            if kill is not None and (kill.place, kill.iteration, 1) == ("collective", iteration.number, details["bucket"]):
                self.write("killed", iteration=iteration.number, me=me)
                os.kill(os.getpid(), signal.SIGKILL)
            return
        what: dict[str, object] = {"iteration": iteration.number, "me": me, **details}
        if name == "decided":
            winner = getattr(iteration, "winner", None)
            what["epoch"] = iteration.epoch
            what["participants"] = [str(member) for member in iteration.participants]
            what["winner"] = None if winner is None else str(winner)
        self.write(name, **what)

    def before_step(self, step: Step) -> None:
        """Makes a step last long enough to be watched; and waits, near the end, for those who are still on their way."""
        waiting = step.position >= SLOW_END * self.plan.steps and step.size < self.plan.final_size
        time.sleep(SLOW_STEP if waiting else self.plan.step_time)


def main() -> None:
    folder = Path(os.environ[PLAN])
    plan = load(folder / "plan.json")
    rank, restarts = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    drill = Drill(plan, folder, rank, restarts)
    drill.arm(os.environ)
    drill.write("started", pid=os.getpid())
    import torch  # takes seconds: only now

    from .train import train

    model, result = train(
        plan.steps,
        min_ranks=2,
        heartbeat_timeout=timedelta(minutes=1),  # longer than any start of a process, so that an early one is early
        observer=drill.observe,
        before_step=drill.before_step,
    )
    torch.save(model.state_dict(), folder / f"rank{rank}.pt")
    drill.write("finished", **asdict(result))


if __name__ == "__main__":
    main()
