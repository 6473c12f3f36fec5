"""`coxless verify`: the model at its large bounds, as one table for the documentation.

Each row is searched in a process of its own, so that its memory is its own. A row that comes to a limit is UNDETERMINED, which
is no pass: the exit code is then 3 (and 1 if a row is violated, or does not come across a situation that it has to meet).
"""

import multiprocessing
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

import click
from rich.console import Console
from rich.progress import Progress as Bar
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

from coxless_model.deaths import death
from coxless_model.environment import Hardened, hardened
from coxless_model.explore import explore
from coxless_model.liveness import check_liveness
from coxless_model.mutants import EQUIVALENT, MUTANTS, Mutant
from coxless_model.results import Limits, Verdict
from coxless_model.two_phase_commit import TwoPhaseCommit

SAFETY, FAIR = "S1-S8, L2's core, L3, deadlock", "L1, L2"


class Job(NamedTuple):
    """A row of the table, as a plain value that can be handed to another process."""

    ranks: int
    iterations: int
    budgets: Mapping[str, int] = {}
    lag: int = 0
    kind: str = "safety"
    """Or liveness, mutant, two-phase commit."""
    symmetry: bool = True
    guard: str = ""

    @property
    def bounds(self) -> str:
        if self.kind == "two-phase commit":
            return f"two-phase commit, {self.ranks} managers" + (", symmetry" if self.symmetry else "")
        faults = ", ".join(_counted(number, name.replace("_", " ")) for name, number in self.budgets.items())
        late = "" if self.lag == 0 else f"; clean-up may lag {self.lag} deletions"
        return f"{self.ranks} ranks x {self.iterations} iterations; {faults or 'no fault'}{late}"


def _counted(number: int, faults: str) -> str:
    if number > 1:
        return f"{number} {faults}"
    for many, one in (("ies", "y"), ("sses", "ss"), ("shes", "sh"), ("s", "")):
        if faults.endswith(many):
            return f"{number} {faults.removesuffix(many)}{one}"
    return f"{number} {faults}"


class Row(NamedTuple):
    job: Job
    properties: str
    verdict: Verdict
    remark: str
    states: int
    transitions: int
    depth: int
    seconds: float
    memory: int
    killed_by: str = ""


ONE_OF_MANY = {"crashes": 1, "restarts": 1, "suspicions": 1, "failed_votes": 1, "lost_replies": 1}
COMING_AND_GOING = {"crashes": 1, "restarts": 1, "suspicions": 1}
JOBS: tuple[Job, ...] = (
    Job(2, 3, ONE_OF_MANY),
    Job(3, 2, COMING_AND_GOING),
    Job(2, 2, {"store_losses": 1}),
    Job(2, 3, {"store_losses": 1}),
    Job(3, 2, {"store_losses": 1}),
    Job(2, 2, {"store_losses": 1, "crashes": 1, "restarts": 1, "join_timeouts": 1}),
    Job(2, 2, {"store_losses": 1, "suspicions": 1, "join_timeouts": 1}),
    Job(2, 2, {"store_losses": 1, "failed_votes": 1, "lost_replies": 1}),
    Job(2, 2, {"store_losses": 1, "lost_replies": 1, "join_timeouts": 1}),
    Job(2, 2, {"store_losses": 2}),
    Job(2, 2, ONE_OF_MANY),
    Job(2, 2, {**COMING_AND_GOING, "join_timeouts": 3}),
    Job(2, 3, COMING_AND_GOING, lag=3),
    Job(2, 4, {"suspicions": 1}, lag=99),
    Job(2, 2, {"store_losses": 1}, lag=99),
    Job(2, 2, {"second_processes": 1, "suspicions": 1}),
    Job(2, 3, {"spared_wakes": 3, "suspicions": 1, "crashes": 1}, lag=3),
    Job(2, 2, {"spared_wakes": 2, "store_losses": 1}),
    Job(2, 2, {"crashes": 1, "dead_marks": 1, "leaves": 1, "join_timeouts": 2}),
    Job(2, 2, {"crashes": 1, "restarts": 1, "join_timeouts": 3}, kind="liveness"),
    Job(2, 2, {"suspicions": 1}, kind="liveness"),
    Job(2, 2, {"spared_wakes": 2, "crashes": 1, "join_timeouts": 2}, kind="liveness"),
    Job(2, 2, {"failed_votes": 1}, kind="liveness"),
    Job(2, 2, {"lost_replies": 1}, kind="liveness"),
    Job(2, 2, {"store_losses": 1}, kind="liveness"),
    *(Job(number, 1, kind="two-phase commit", symmetry=False) for number in (3, 5, 7)),
    Job(5, 1, kind="two-phase commit"),
    *(Job(each.ranks, each.iterations, each.budgets, kind="mutant", guard=each.guard) for each in (*MUTANTS, *EQUIVALENT)),
)


def searched(job: Job, limits: Limits) -> Row:
    if job.kind == "mutant":
        found = death(_mutant(job), limits)
        remark = found.wrong if found.verdict is Verdict.UNDETERMINED else ""
        return Row(job, "", found.verdict, remark, found.states, 0, found.length, found.seconds, 0, found.killed_by)
    if job.kind == "liveness":
        lively = check_liveness(_hardened(job), limits=limits)
        remark = lively.reason or ", ".join(lasso.goal for lasso in lively.lassos)
        return Row(
            job, FAIR, lively.verdict, remark, lively.states, lively.transitions, lively.depth, lively.seconds, lively.memory
        )
    if job.kind == "two-phase commit":
        result = explore(TwoPhaseCommit(job.ranks), symmetry=job.symmetry, limits=limits)
    else:
        result = explore(_hardened(job), symmetry=True, limits=limits)
    untaken = f"never taken: {', '.join(result.never_taken)}" if result.never_taken and not result.reason else ""
    verdict, remark = result.verdict, result.reason or ", ".join(found.property for found in result.counterexamples) or untaken
    missed = [name for name, reached in result.reached.items() if not reached]
    if verdict is Verdict.HOLDS and missed:
        verdict, remark = Verdict.VIOLATED, f"never reached: {', '.join(missed)}"
    properties = SAFETY if job.kind == "safety" else "consistency, deadlock"
    return Row(job, properties, verdict, remark, result.states, result.transitions, result.depth, result.seconds, result.memory)


def _hardened(job: Job) -> Hardened:
    return hardened(job.ranks, job.iterations, lag=job.lag, missing=(), **job.budgets)


def _mutant(job: Job) -> Mutant:
    return next(each for each in (*MUTANTS, *EQUIVALENT) if each.guard == job.guard)


def verified(jobs: Sequence[Job], limits: Limits, processes: int, on_row: Callable[[Row], None]) -> list[Row]:
    """All rows, in the order of the jobs; the longest come first, so that the cores are busy to the end."""
    rows: dict[int, Row] = {}
    # A fresh interpreter for each row: what one has freed does not make the memory of the next look smaller.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, max_tasks_per_child=1) as pool:
        waiting: dict[Future[Row], int] = {pool.submit(searched, job, limits): place for place, job in enumerate(jobs)}
        while waiting:
            for done in wait(waiting, return_when=FIRST_COMPLETED).done:
                place = waiting.pop(done)
                rows[place] = done.result()
                on_row(rows[place])
    return [rows[place] for place in range(len(jobs))]


def exit_code(rows: Sequence[Row]) -> int:
    """A mutant has to be killed, unless it is argued equivalent; everything else has to hold."""
    if any(row.verdict is not Verdict.UNDETERMINED and row.verdict is not _wanted(row.job) for row in rows):
        return 1
    return 3 if any(row.verdict is Verdict.UNDETERMINED for row in rows) else 0


def _wanted(job: Job) -> Verdict:
    survives = job.kind != "mutant" or any(each.guard == job.guard for each in EQUIVALENT)
    return Verdict.HOLDS if survives else Verdict.VIOLATED


def markdown(rows: Sequence[Row], began: str) -> Iterator[str]:
    yield f"Printed by `coxless verify` on {began}: {machine()}."
    yield ""
    yield "| bounds | properties | verdict | states | transitions | depth | time | memory |"
    yield "|---|---|---|---:|---:|---:|---:|---:|"
    for row in rows:
        if row.job.kind != "mutant":
            verdict = f"{row.verdict}" + (f" ({row.remark})" if row.remark else "")
            size = f"{row.states:,} | {row.transitions:,} | {row.depth}".replace(",", " ")
            cost = f"{row.seconds:.0f} s | {row.memory >> 20} MiB"
            yield f"| {row.job.bounds} | {row.properties} | {verdict} | {size} | {cost} |"
    mutants = [row for row in rows if row.job.kind == "mutant"]
    if mutants:
        yield ""
        yield from _mutants(mutants)


def _mutants(rows: Sequence[Row]) -> Iterator[str]:
    meant = [row for row in rows if _wanted(row.job) is Verdict.VIOLATED]
    killed = sum(row.verdict is Verdict.VIOLATED for row in meant)
    yield f"Mutants: {killed} of {len(meant)} killed; {len(rows) - len(meant)} argued equivalent."
    yield ""
    yield "| without the guard | the mutant | killed by | steps |"
    yield "|---|---|---|---:|"
    for row in rows:
        equivalent = "equivalent" if _wanted(row.job) is Verdict.HOLDS else "SURVIVES"
        fate = row.killed_by or (equivalent if row.verdict is Verdict.HOLDS else f"undetermined ({row.remark})")
        yield f"| {row.job.guard} | {_mutant(row.job).removed} | {fate} | {row.depth or ''} |"


def machine() -> str:
    """The machine as far as it matters to the numbers."""
    return f"{_processor()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@click.command()
@click.option("--jobs", "processes", type=click.IntRange(1), default=1, show_default=True, help="Rows searched at once.")
@click.option("--max-seconds", type=click.FloatRange(0), help="For each row.")
@click.option("--max-memory", type=click.IntRange(1), metavar="MIB", help="For each row.")
@click.option("--only", multiple=True, type=click.Choice(("safety", "liveness", "mutant", "two-phase commit")))
@click.option("--row", "places", multiple=True, type=click.IntRange(1), help="Only this row of the table; may be repeated.")
@click.pass_context
def verify(
    context: click.Context,
    processes: int,
    max_seconds: float | None,
    max_memory: int | None,
    only: tuple[str, ...],
    places: tuple[int, ...],
) -> None:
    """Search the hardened protocol at its large bounds, and print the table of what was found (Markdown).

    Exit code: 0 everything holds and every mutant is killed, 1 not so, 3 a limit came first.
    """
    began = time.strftime("%Y-%m-%d")
    limits = Limits(seconds=max_seconds, memory=None if max_memory is None else max_memory << 20)
    jobs = [job for place, job in enumerate(JOBS, 1) if (not only or job.kind in only) and (not places or place in places)]
    columns = (
        SpinnerColumn(),
        TextColumn("{task.completed} of {task.total} rows"),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        line = bar.add_task("", total=len(jobs))
        rows = verified(jobs, limits, processes, lambda row: bar.update(line, advance=1, description=row.job.bounds))
    for text in markdown(rows, began):
        click.echo(text)
    context.exit(exit_code(rows))


if __name__ == "__main__":
    verify()
