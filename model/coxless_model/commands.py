"""`coxless check`, `coxless mutants` and `coxless trace`: the checkers on the command line.

Exit codes: 0 it holds, 1 it is violated, 2 the command was wrong, 3 undetermined (a limit came first, or random walks found
nothing, which proves nothing).
"""

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress as Bar
from rich.progress import SpinnerColumn, TextColumn

from coxless_model import corpus, itf, report
from coxless_model.bounds import BUDGETS, configured
from coxless_model.bounds import configuration as configuration_of
from coxless_model.deaths import Death, death
from coxless_model.explore import DEADLOCK, explore
from coxless_model.liveness import LivenessResult, check_liveness
from coxless_model.machine import System
from coxless_model.mutants import EQUIVALENT, MUTANTS, Mutant, by_name
from coxless_model.random_faults import KINDS, fault_scenarios
from coxless_model.results import Limits, Progress, Result, Verdict
from coxless_model.simulate import simulate
from coxless_model.symmetry import NotSymmetric

EXIT = {Verdict.HOLDS: 0, Verdict.VIOLATED: 1, Verdict.UNDETERMINED: 3}
VERDICT = {code: str(verdict) for verdict, code in EXIT.items()}
FAULTS = tuple(dict.fromkeys(budget for budgets in BUDGETS.values() for budget in budgets))
USUAL = {"drawn": {"crashes": 1}, "hardened": {"crashes": 1, "restarts": 1}, "two-phase-commit": {}}
"""The faults that happen when none are asked for."""
DRAWN_PROMISES = ("S1", "S2", "S3")
Progressing = Callable[[Progress], None] | None


def bounds(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that bound a system: ranks, iterations, and a budget for each fault."""
    for fault in reversed(FAULTS):
        label = fault.replace("_", "-")
        spoken = fault.replace("_", " ")
        command = click.option(f"--{label}", type=click.IntRange(0), default=None, help=f"How many {spoken} may happen.")(command)
    command = click.option(
        "--beyond", is_flag=True, help="Go on where the store-loss clause does not hold any more, and nothing is claimed."
    )(command)
    command = click.option("--lag", type=click.IntRange(0), default=None, help="How far clean-up may lag behind.")(command)
    command = click.option("--min-ranks", type=click.IntRange(1), default=None, help="Fewer do not go on.  [default: 1]")(command)
    command = click.option("--iterations", type=click.IntRange(1), default=None, help="[default: 2, or the mutant's]")(command)
    return click.option("--ranks", type=click.IntRange(1, 8), default=None, help="[default: 2, or the mutant's]")(command)


@click.command()
@click.argument("what", metavar="[drawn|hardened|two-phase-commit|MUTANT]", default="hardened")
@bounds
@click.option("--symmetry/--no-symmetry", default=True, help="Treat ranks as interchangeable (safety only).  [default: on]")
@click.option("--por/--no-por", default=False, help="Do not interleave invisible local steps.  [default: off]")
@click.option("--liveness", is_flag=True, help="Check every fair run as well (on the full graph).")
@click.option("--property", "properties", multiple=True, help="Only this property; may be repeated.")
@click.option("--max-states", type=click.IntRange(1))
@click.option("--max-seconds", type=click.FloatRange(0))
@click.option("--max-memory", type=click.IntRange(1), metavar="MIB")
@click.option("--simulate", "walks", type=click.IntRange(1), metavar="N", help="Walk N times at random instead of everywhere.")
@click.option("--length", type=click.IntRange(1), default=1000, show_default=True, help="The most steps of a random walk.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--actions", is_flag=True, help="List how often each action was taken.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def check(context: click.Context, /, what: str, **options: Any) -> None:
    """Explore a protocol exhaustively and check its promises.

    WHAT is the protocol as drawn, the hardened one (the default), one of its mutants, or two-phase commit as a yardstick.
    Without any fault asked for, one rank may crash (and restart, in the hardened protocol). A violated promise is shown by a
    shortest run. Exit code: 0 holds, 1 violated, 2 usage, 3 undetermined.
    """
    system = _system(what, options)
    limits = Limits(options["max_states"], options["max_seconds"], _mebibytes(options["max_memory"]))
    asked = options["properties"]
    goals = {goal.id for goal in system.goals}
    known = {invariant.id for invariant in system.invariants} | goals | {DEADLOCK}
    if unknown := sorted(set(asked) - known):
        raise click.UsageError(f"{what} has no property {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    # Everything that is asked for by name, or for the drawn protocol one counterexample of each of its promises.
    each = what == "drawn" and not asked
    safety = tuple(asked) or ((*DRAWN_PROMISES, DEADLOCK) if each else None)
    fair = options["liveness"] or bool(goals & set(asked)) or (what not in BUDGETS and _mutant(what).liveness)
    try:
        with _progress() as on_progress:
            if options["walks"]:
                result = simulate(
                    system,
                    seed=options["seed"],
                    walks=options["walks"],
                    length=options["length"],
                    limits=limits,
                    properties=safety,
                    on_progress=on_progress,
                )
            else:
                result = explore(
                    system,
                    limits=limits,
                    symmetry=options["symmetry"],
                    reduction=options["por"],
                    properties=safety,
                    every_property=each,
                    on_progress=on_progress,
                )
            lively = check_liveness(system, asked or None, limits=limits, on_progress=on_progress) if fair else None
    except NotSymmetric as error:
        raise click.UsageError(f"{error}; use --no-symmetry") from None
    except KeyboardInterrupt:
        raise click.ClickException("interrupted") from None
    code = _code(result, lively)
    if options["as_json"]:
        whole = {**report.result_json(result), "safety": str(result.verdict), "verdict": VERDICT[code]}
        if lively is not None:
            whole["liveness"] = report.liveness_json(lively)
        click.echo(json.dumps({**whole, "exit_code": code}, ensure_ascii=False, indent=1))
    else:
        _show(system, result, lively, actions=options["actions"])
    if code:
        click.echo(f"To reproduce: {_command_line(context)}", err=options["as_json"])
    context.exit(code)


def _system(what: str, options: dict[str, Any]) -> System:
    """The system that the arguments ask for; a usage error says what is wrong with them."""
    given = {fault: options[fault] for fault in FAULTS if options[fault] is not None}
    bounds: dict[str, Any] = {
        name: options[name] for name in ("ranks", "iterations", "min_ranks", "lag") if options[name] is not None
    }
    if what in BUDGETS:
        given = given or dict(USUAL[what])
        bounds = {"ranks": 2, "iterations": 2} | bounds
        if what == "hardened":
            # One for each process that may have to found the job, so that founding never hangs for want of time.
            given.setdefault("join_timeouts", bounds["ranks"] + given.get("restarts", 0) + given.get("second_processes", 0))
        if what == "two-phase-commit":
            del bounds["iterations"]
        configuration = {"protocol": what, **bounds, "budgets": given}
        if options["beyond"]:
            configuration["beyond"] = True
    else:
        usual = configuration_of(_mutant(what).system)
        configuration = {**usual, **bounds, "budgets": given or usual["budgets"]}
    try:
        return configured(configuration)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _mutant(name: str) -> Mutant:
    try:
        return by_name(name)
    except ValueError:
        near = get_close_matches(name, [*BUDGETS, *(each.guard for each in (*MUTANTS, *EQUIVALENT))], n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else ";"
        raise click.UsageError(f"unknown protocol or mutant {name!r}{hint} `coxless mutants --list` lists the mutants") from None


def _mebibytes(number: int | None) -> int | None:
    return None if number is None else number << 20


def _code(result: Result, lively: LivenessResult | None) -> int:
    verdicts = [result.verdict] + ([] if lively is None else [lively.verdict])
    if Verdict.VIOLATED in verdicts or (result.verdict is Verdict.HOLDS and not all(result.reached.values())):
        return EXIT[Verdict.VIOLATED]
    return EXIT[Verdict.UNDETERMINED if Verdict.UNDETERMINED in verdicts else Verdict.HOLDS]


def _show(system: System, result: Result, lively: LivenessResult | None, *, actions: bool) -> None:
    meanings = {goal.id: goal.meaning for goal in system.goals} | {each.id: each.meaning for each in system.invariants}
    for found in result.counterexamples:
        meaning = meanings.get(found.property, "")
        if found.property == DEADLOCK:
            last = found.trace.states[-1]
            goal = next(goal for goal in system.goals if not goal.reached(last) and not goal.excused(last))
            meaning = goal.meaning
            found = found._replace(property=goal.id, wrong=f"deadlock: {found.wrong}")
        report.to_console(report.counterexample(found, meaning))
        click.echo()
    if lively is not None:
        for lasso in lively.lassos:
            report.to_console(report.lasso(lasso, meanings.get(lasso.goal, "")))
            click.echo()
    if actions:
        report.to_console(report.actions_taken(result))
        click.echo()
    report.to_console(report.summary(result))
    if lively is not None:
        report.to_console(report.liveness_summary(lively))


def _command_line(context: click.Context) -> str:
    """The command with everything that was given, so that it can be run again."""
    words = ["coxless", context.info_name or ""]
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if isinstance(parameter, click.Argument):
            words += [str(value)]
        elif context.get_parameter_source(parameter.name or "") is click.core.ParameterSource.COMMANDLINE:
            if isinstance(parameter, click.Option) and parameter.is_flag:
                words.append(parameter.opts[0] if value else (parameter.secondary_opts or parameter.opts)[0])
            else:
                for each in value if isinstance(value, tuple) else (value,):
                    words += [parameter.opts[0], str(each)]
    return shlex.join(words)


@contextmanager
def _progress() -> Iterator[Progressing]:
    """A line with states, depth, rate and memory, if somebody is there to see it."""
    if not sys.stderr.isatty():
        yield None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"))
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        line = bar.add_task("")

        def show(progress: Progress) -> None:
            rate = progress.states / max(progress.seconds, 0.01)
            bar.update(
                line,
                description=f"{progress.states} states, depth {progress.depth}, {progress.waiting} waiting, "
                f"{rate:.0f} states/s, {progress.memory >> 20} MiB",
            )

        yield show


@click.command()
@click.argument("names", nargs=-1, metavar="[MUTANT]...")
@click.option("--max-seconds", type=click.FloatRange(0), help="For each mutant.")
@click.option("--max-memory", type=click.IntRange(1), metavar="MIB")
@click.option("--list", "only_list", is_flag=True, help="Only list them.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def mutants(context: click.Context, /, names: tuple[str, ...], only_list: bool, as_json: bool, **options: Any) -> None:
    """Take the guards out of the hardened protocol, one at a time: every such mutant has to be found out.

    Exit code: 0 all are killed but for those argued equivalent, 1 one survives (or an equivalent one is killed after all),
    3 a limit came first.
    """
    chosen = tuple(map(_mutant, names)) or (*MUTANTS, *EQUIVALENT)
    if only_list:
        report.to_console(report.mutant_list(chosen))
        return
    limits = Limits(seconds=options["max_seconds"], memory=_mebibytes(options["max_memory"]))
    deaths: list[Death] = []
    with Bar(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        for each in bar.track(chosen):
            deaths.append(death(each, limits))
    survivors = [each.mutant.guard for each in deaths if each.verdict is Verdict.HOLDS and each.mutant not in EQUIVALENT]
    refuted = [each.mutant.guard for each in deaths if each.verdict is Verdict.VIOLATED and each.mutant in EQUIVALENT]
    unknown = [each.mutant.guard for each in deaths if each.verdict is Verdict.UNDETERMINED]
    code = 1 if survivors or refuted else 3 if unknown else 0
    if as_json:
        click.echo(json.dumps({"mutants": [report.death_json(each) for each in deaths], "exit_code": code}, indent=1))
    else:
        report.to_console(report.death_table(deaths, EQUIVALENT))
    for guards, what in ((survivors, "survives"), (refuted, "is killed, though argued equivalent"), (unknown, "is undetermined")):
        for guard in guards:
            click.echo(f"{guard} {what}. To reproduce: {shlex.join(['coxless', 'check', guard])}", err=as_json)
    context.exit(code)


@click.command()
@click.option(
    "--corpus", "folder", type=click.Path(path_type=Path, file_okay=False), help="Write the corpus of failure traces here."
)
@click.option("--check", "compare", is_flag=True, help="Do not write: compare what is there with what the model gives.")
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice(KINDS),
    help="Make random scenarios with this fault in them; may be repeated.",
)
@click.option(
    "--length", type=click.IntRange(1), default=60, show_default=True, help="The number of steps; fewer where nothing goes on."
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--count", type=click.IntRange(1), default=1, show_default=True, help="How many scenarios.")
@click.option("--ranks", type=click.IntRange(1, 8), default=3, show_default=True)
@click.option("--iterations", type=click.IntRange(1), default=3, show_default=True)
@click.option(
    "--output", type=click.Path(path_type=Path, file_okay=False), default=Path(), help="Where scenarios go.  [default: .]"
)
@click.pass_context
def trace(context: click.Context, /, folder: Path | None, compare: bool, kinds: tuple[str, ...], **options: Any) -> None:
    """Make failure traces, as ITF files: the corpus, or random fault scenarios.

    --corpus DIR writes the shortest trace of each flaw of the drawn protocol and of each mutant of the hardened one, and a run
    beyond each part of the store-loss clause, the same bytes each time. --kind FAULT makes random runs of the hardened protocol
    in which that fault happens, as input for tests.

    Exit code: 0 done, 1 the corpus differs or too few scenarios were found, 2 usage.
    """
    if (folder is None) == (not kinds):
        raise click.UsageError("give either --corpus DIR or --kind FAULT")
    if compare and folder is None:
        raise click.UsageError("--check compares a corpus: give --corpus DIR")
    if kinds:
        found = fault_scenarios(
            kinds,
            ranks=options["ranks"],
            iterations=options["iterations"],
            length=options["length"],
            seed=options["seed"],
            count=options["count"],
        )
        made = 0
        for name, scenario in found:
            path = options["output"] / f"{name}{corpus.SUFFIX}"
            itf.write(path, scenario)
            click.echo(str(path))
            made += 1
        if made < options["count"]:
            bounds = f"{options['ranks']} ranks, {options['iterations']} iterations and {options['length']} steps"
            raise click.ClickException(
                f"found {made} of {options['count']} scenarios with {', '.join(kinds)} in {bounds}; allow more steps"
            )
        return
    assert folder is not None
    try:
        if not compare:
            for path in corpus.regenerate(folder, corpus.entries()):
                click.echo(str(path))
            return
        differing = list(corpus.differences(folder, corpus.entries()))
    except corpus.NotFound as error:
        raise click.ClickException(str(error)) from None
    for line in differing:
        click.echo(line)
    if differing:
        click.echo(f"To make them again: {shlex.join(['coxless', 'trace', '--corpus', str(folder)])}")
        context.exit(1)
