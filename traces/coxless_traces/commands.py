"""`coxless replay` and `coxless mapping`: model and implementation side by side.

Exit codes: 0 they agree, 1 they differ, 2 the command was wrong, or could not be carried out.
"""

from pathlib import Path

import click

from coxless.errors import CoxlessError
from coxless_model import itf
from coxless_model.drawn import Drawn
from coxless_model.environment import Hardened
from coxless_model.machine import System

from . import mapping as table
from .decided_twice import Decisions
from .drawn_replay import DrawnReplay
from .invisible import why_invisible
from .processes import RankProcessError, in_processes
from .replay import Lockstep, Mismatch, NewReplica, in_this_process, told
from .same_schedule import Harm, hardened_on
from .target_option import SHARED, WrongInput, opened, target_options
from .targets import Target, Torch


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@target_options
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
    with opened(kind, address) as store:
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


@click.command()
def mapping() -> None:
    """Print the table that ties the steps of the model to those of the implementation (docs/mapping.md)."""
    click.echo(table.page(), nl=False)
