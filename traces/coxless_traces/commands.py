"""`coxless replay`, `coxless cover` and `coxless mapping`: model and implementation side by side.

Exit codes: 0 they agree, 1 they differ, 2 the command was wrong, or could not be carried out.
"""

import contextlib
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import track
from rich.table import Table

from coxless.errors import CoxlessError
from coxless.protocol.operations import Add
from coxless_model import itf
from coxless_model.drawn import Drawn
from coxless_model.environment import Budgets, Hardened
from coxless_model.machine import System
from coxless_model.process import Setting

from . import mapping as table
from .decided_twice import Decisions
from .drawn_replay import DrawnReplay
from .edge_cover import Coverage, replay_cover, sample, state_graph
from .edge_cover import cover as cover_of
from .invisible import why_invisible
from .processes import RankProcessError, in_processes
from .replay import Lockstep, Mismatch, NewReplica, in_this_process, told
from .same_schedule import Harm, hardened_on
from .targets import NAMES, Target, Torch, target

TARGETS = click.Choice(NAMES)
SHARED = ("tcp", "etcd")
"""The targets that have an address."""


class WrongInput(click.ClickException):
    """A file, a store or a process that nothing can be replayed with: one sentence, and exit code 2, since nobody has parted from anybody."""

    exit_code = 2


def _target_options(command: Any) -> Any:
    for option in (
        click.option(
            "--address", metavar="ADDRESS", help="Of a TCPStore or etcd that runs already, and is empty; else one is started."
        ),
        click.option("--target", "kind", type=TARGETS, default="tcp", show_default=True, help="The store to replay on."),
    ):
        command = option(command)
    return command


@contextlib.contextmanager
def _target(kind: str, address: str | None) -> Iterator[Target]:
    """The target; what is wrong with it is one sentence."""
    if address is not None and kind not in SHARED:
        raise click.UsageError(f"--address is for the targets tcp and etcd, not for {kind}")
    with contextlib.ExitStack() as stack:
        try:
            store = stack.enter_context(target(kind, address))
        except (CoxlessError, ValueError) as error:
            raise WrongInput(str(error)) from None
        yield store


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_target_options
@click.option("--processes", is_flag=True, help="Each rank is a process of its own, and a crash is SIGKILL.")
@click.option("--quiet", is_flag=True, help="Only the outcome, not the story.")
@click.pass_context
def replay(context: click.Context, files: tuple[Path, ...], kind: str, address: str | None, processes: bool, quiet: bool) -> None:
    """Replay traces on a real store, step by step.

    A trace of the hardened protocol: the implementation has to do what the model does; beyond the store-loss clause, with the same
    damage. A trace of the drawn one: the damage is looked at where it is done, and the same schedule is tried on the hardened protocol.
    """
    code = 0
    if processes and kind not in SHARED:
        raise click.UsageError(f"--processes is for the targets tcp and etcd: several processes cannot share {kind}")
    with _target(kind, address) as store:
        new_replica = _in_processes(store) if processes else in_this_process
        for path in files:
            try:
                trace = itf.read(path)
                system = trace.system
                deviation = itf.deviation(system, trace)
            except (itf.CorruptTrace, ValueError) as error:
                raise WrongInput(str(error)) from None
            if deviation is not None:
                raise WrongInput(f"{path}: is no run of the model: state {deviation.step}: {deviation.wrong}")
            if processes and isinstance(system, Drawn):
                raise WrongInput(f"{path}: a trace of the drawn protocol is replayed in one process; leave out --processes")
            click.secho(f"{trace.title}", bold=True)
            click.echo(trace.prose)
            try:
                code |= (
                    _replay_drawn(system, trace, store, quiet)
                    if isinstance(system, Drawn)
                    else _replay(system, trace, store, new_replica, quiet)
                )
            except RankProcessError as error:
                raise WrongInput(str(error)) from None
            except (Mismatch, CoxlessError) as error:
                click.echo(str(error))
                click.echo(f"To reproduce: coxless replay --target {kind} {'--processes ' if processes else ''}{path}")
                code = 1
            click.echo()
    context.exit(code)


def _in_processes(store: Target) -> NewReplica:
    assert isinstance(store, Torch) and store.address is not None
    return in_processes(store.address)


def _replay(system: System, trace: itf.TraceFile, store: Target, new_replica: NewReplica, quiet: bool) -> int:
    if not isinstance(system, Hardened):
        raise WrongInput(f"{system.name}: there is no implementation to replay it on")
    guards = ", ".join(system.setting.missing)
    invisible = why_invisible(system.setting.missing)
    if trace.wrong:
        click.echo(f"The model says ({trace.broken}): {trace.wrong}")
    if invisible is not None:
        click.echo(f"A mutant of the model (without {guards}). A replay cannot tell it from the library: {invisible}.")
    elif guards:
        click.echo(
            f"A mutant of the model (without {guards}). The library has this guard, so it has to do something else at some step."
        )
    parts = bool(guards) and invisible is None
    lockstep = Lockstep(system, store, new_replica)
    decisions = Decisions(lockstep)
    try:
        for number, (before, action, after) in enumerate(itf.executed(system, trace).steps, start=1):
            try:
                lockstep.step(before, action, after)
            except RankProcessError:
                raise
            except (Mismatch, CoxlessError) as error:
                found = (
                    str(error).partition(", ")[2]
                    if isinstance(error, Mismatch)
                    else f"{told(action)}: {type(error).__name__}: {error}"
                )
                if not parts:
                    raise
                click.echo(f"{number:4}  here it does: {found}")
                click.echo("The library parts from the mutant, as it has to")
                return 0
            decisions.look()
            if not quiet:
                click.echo(f"{number:4}  {told(action)}")
    finally:
        lockstep.close()
    if parts:
        click.echo(f"{lockstep.steps} steps, no difference: the library does all that the mutant does, so it lacks the guard too")
        return 1
    click.echo(f"{lockstep.steps} steps, no difference{', as was to be expected' if invisible else ''}")
    if not system.beyond:
        return 0
    damage = decisions.twice()
    for seen in damage or ["nothing"]:
        click.echo(f"Seen on the store: {seen}")
    return int(bool(trace.wrong) and not damage)


def _replay_drawn(system: Drawn, trace: itf.TraceFile, store: Target, quiet: bool) -> int:
    run = itf.executed(system, trace)
    replaying = DrawnReplay(system, store)
    try:
        for number, (rank, step, operation, reply, changed) in enumerate(replaying.story(run), start=1):
            if not quiet:
                answer = "" if reply is None else f" -> {reply}"
                click.echo(f"{number:4}  rank {rank}  {step:32} {operation}{answer}{'   | ' + changed if changed else ''}")
        damage = replaying.damage(trace.broken)
    finally:
        replaying.close()
    click.echo(f"The model says ({trace.broken}): {trace.wrong}")
    for seen in damage or ["nothing"]:
        click.echo(f"Seen on the store: {seen}")
    try:
        harmless = hardened_on(system, run, store)
    except Harm as error:
        click.echo(f"The same schedule, hardened: HARM: {error}")
        return 1
    decided = ", ".join(map(str, sorted(harmless.iterations)))
    click.echo(f"The same schedule, hardened: no harm; decided once each: {decided} (the crew took {harmless.steps} steps)")
    return 0 if damage else 1


def _budgets(command: Any) -> Any:
    for name in reversed(Budgets._fields):
        label = f"--{name.replace('_', '-')}"
        command = click.option(label, type=click.IntRange(0), default=0, help=f"How many {name.replace('_', ' ')} may happen.")(
            command
        )
    return command


@click.command()
@click.option("--ranks", type=click.IntRange(1, 6), default=2, show_default=True)
@click.option("--iterations", type=click.IntRange(1), default=2, show_default=True)
@_budgets
@_target_options
@click.option(
    "--share", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True, help="Replay this part of the runs."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Which part.")
@click.option("--action", "actions", multiple=True, help="Only transitions of this action; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def cover(
    context: click.Context,
    /,
    ranks: int,
    iterations: int,
    kind: str,
    address: str | None,
    share: float,
    seed: int,
    actions: tuple[str, ...],
    as_json: bool,
    **budgets: int,
) -> None:
    """Replay every transition of the hardened model at least once on a real store.

    Runs that take all transitions are computed from the state graph; --share replays a fixed part of them.
    """
    known = {row.step for row in (*table.STEPS, *table.ENVIRONMENT)}
    if unknown := sorted(set(actions) - known):
        raise click.UsageError(f"there is no action {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    system = Hardened(Setting(ranks, 1, iterations), Budgets(**budgets))
    graph = state_graph(system)
    runs = cover_of(graph, (lambda edge: edge.action.name in actions) if actions else None)
    chosen = sample(runs, share, seed) if share < 1 else runs
    console = Console(stderr=True)
    with _target(kind, address) as store:
        raw = _raw_operation(store)
        bar = iter(track(range(len(chosen)), console=console, disable=not sys.stderr.isatty(), transient=True))
        try:
            covered = replay_cover(system, store, graph, chosen, lambda _: _advance(bar))
        except Mismatch as mismatch:
            click.echo(str(mismatch))
            given = " ".join(sys.argv[1:])
            click.echo(f"To reproduce: coxless {given}")
            context.exit(1)
    if as_json:
        click.echo(json.dumps({**covered._asdict(), "share": covered.share, "raw_us": raw * 1e6}, indent=1))
    else:
        _show_coverage(covered, len(graph.edges), raw)


def _advance(bar: Iterator[int]) -> None:
    next(bar, None)


def _raw_operation(store: Target) -> float:
    """The median time of one store operation, for comparison (s)."""
    line, times = store.open(), []
    for _ in range(500):
        began = time.perf_counter()
        line.perform(Add("raw", "raw", 1))
        times.append(time.perf_counter() - began)
    line.close()
    return statistics.median(times)


def _show_coverage(covered: Coverage, states: int, raw: float) -> None:
    shown = Table("action", "transitions", "replayed", "share", title=None)
    for name in sorted(covered.there):
        there, taken = covered.there[name], covered.taken[name]
        shown.add_row(name, str(there), str(taken), f"{taken / there:.1%}")
    Console(width=None if sys.stdout.isatty() else 100).print(shown)
    click.echo(
        f"{covered.taken.total()} of {covered.there.total()} transitions ({covered.share:.1%}) of {states} states, "
        f"in {covered.runs} runs of {covered.steps} steps: no difference"
    )
    click.echo(
        f"{covered.seconds:.1f} s; a step: median {covered.median * 1e6:.0f} µs, mean {covered.seconds / covered.steps * 1e6:.0f} µs; "
        f"a raw store operation: {raw * 1e6:.0f} µs"
    )


@click.command()
def mapping() -> None:
    """Print the table that ties the steps of the model to those of the implementation (docs/mapping.md)."""
    click.echo(table.page(), nl=False)
