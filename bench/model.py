"""What the checker costs: states per second and bytes per state beside the search that everybody would write first, time to
verdict, steps per second of the simulation; two-phase commit as the yardstick that checkers share.

Each measurement runs in a process of its own. Timings on a shared machine are noisy: CPU time is what is compared.
"""

import importlib.util
import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import click

from coxless_model.environment import hardened
from coxless_model.explore import explore
from coxless_model.machine import System
from coxless_model.plain import plain_search
from coxless_model.results import Limits
from coxless_model.simulate import simulate
from coxless_model.two_phase_commit import TwoPhaseCommit
from coxless_model.verify import machine

WITH_SPIN = "hardened, 2 ranks x 2 iterations, crash, restart, suspicion, failed vote"
"""At bounds that the transcription for Spin has as well (without store loss)."""
SPIN_BUDGETS: dict[str, Any] = {"crashes": 1, "restarts": 1, "suspicions": 1, "failed_votes": 1}

SYSTEMS: dict[str, Callable[[], System]] = {
    "hardened, 2 ranks x 2 iterations, 1 of each of five faults": lambda: hardened(
        2, 2, lag=0, crashes=1, restarts=1, suspicions=1, failed_votes=1, lost_replies=1
    ),
    "hardened, 3 ranks x 2 iterations, crash, restart, suspicion": lambda: hardened(
        3, 2, lag=0, crashes=1, restarts=1, suspicions=1
    ),
    WITH_SPIN: lambda: hardened(2, 2, **SPIN_BUDGETS),
    "two-phase commit, 7 managers": lambda: TwoPhaseCommit(7),
    "two-phase commit, 8 managers": lambda: TwoPhaseCommit(8),
}


class Measured(NamedTuple):
    system: str
    method: str
    states: int
    """For walks the number of steps."""
    seconds: float
    """CPU time."""
    memory: int
    remark: str

    @property
    def rate(self) -> float:
        return self.states / max(self.seconds, 1e-9)


def measure(name: str, method: str, states: int | None) -> Measured:
    """In a fresh process: one search, or walks."""
    if method == "spin":
        return spin(name)
    system, remark = SYSTEMS[name](), ""
    started = time.process_time()
    if method == "plain":
        plain = plain_search(system, states)
        number, memory = plain.states, plain.memory
        remark = plain.broken or ("the first states" if states is not None and number >= states else "all states")
    elif method == "walks":
        result = simulate(system, seed=1, walks=2000, length=500)
        number, memory, remark = result.transitions, 0, "random walks; steps, not states"
    else:
        result = explore(system, symmetry=method == "engine, symmetry", limits=Limits(states=states))
        number, memory = result.states, result.memory
        remark = f"{result.verdict}" if not result.reason else "the first states"
    return Measured(name, method, number, time.process_time() - started, memory, remark)


def spin(name: str) -> Measured:
    """The same search by Spin, on the Promela transcription: breadth first, every state in full, no reduction; compiling not counted."""
    found = compare.pan(compare.Bounds(2, SPIN_BUDGETS).macros, "-O2")
    return Measured(name, "spin", found.states, found.seconds, 0, f"gcc -O2, {found.violation or 'all states'}")


def _load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


compare = _load(Path(__file__).parents[1] / "model" / "promela" / "compare.py")


@click.command()
@click.option("--states", type=click.IntRange(1), default=600_000, show_default=True, help="Where the comparison stops.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("out/bench"), show_default=True)
def main(states: int, out: Path) -> None:
    """Print the table of the checker's speed and memory (Markdown), and write it to model.md."""
    lines: list[str] = []

    def say(line: str) -> None:
        click.echo(line)
        lines.append(line)

    first, second, _, *yardsticks = SYSTEMS
    plan: list[tuple[str, str, int | None]] = [
        *((name, method, states) for name in (first, second) for method in ("plain", "engine")),
        *((name, "engine, symmetry", None) for name in (first,)),
        (first, "walks", None),
        (WITH_SPIN, "engine", None),
        *([(WITH_SPIN, "spin", None)] if compare.installed() else []),
        *((name, method, None) for name in yardsticks for method in ("engine", "engine, symmetry")),
        (yardsticks[0], "plain", None),
    ]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        rows = [pool.submit(measure, *each).result() for each in plan]
    say(f"Measured on {time.strftime('%Y-%m-%d')} on {machine()}; CPU seconds.\n")
    say("| system | search | states | states/s | bytes/state | CPU s | |")
    say("|---|---|---:|---:|---:|---:|---|")
    for row in rows:
        size = f"{row.memory / row.states:.0f}" if row.memory else "-"
        say(f"| {row.system} | {row.method} | {row.states} | {row.rate:.0f} | {size} | {row.seconds:.1f} | {row.remark} |")
    say("")
    for name in (first, second, yardsticks[0]):
        plain, engine = (next(row for row in rows if row[:2] == (name, method)) for method in ("plain", "engine"))
        smaller = (engine.memory / engine.states) / max(plain.memory / plain.states, 1)
        say(f"- {name}: {engine.rate / plain.rate:.1f} times the states per second of plain, {smaller:.2f} of its memory")

    engine, *theirs = (row for row in rows if row.system == WITH_SPIN)
    for row in theirs:
        say(f"- {WITH_SPIN}: {engine.seconds / row.seconds:.1f} times Spin's time ({engine.states} and {row.states} states)")
    if not theirs:
        say("- Spin is not installed: apt-get install spin gcc")
    out.mkdir(parents=True, exist_ok=True)
    (out / "model.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
