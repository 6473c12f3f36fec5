"""`coxless cover`: every transition of the model, taken by the implementation on a store.

Exit codes: 0 they agree, 1 they differ, 2 the command was wrong, 130 it was ended by Ctrl-C.
"""

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

from coxless.protocol.operations import Add
from coxless_model.environment import Budgets, Hardened
from coxless_model.keyed import TooMany
from coxless_model.process import Setting

from . import mapping as table
from . import transitions
from .edge_cover import Coverage, Graph, Wanted, one_of_each_orbit, replay_cover, sample, state_graph
from .edge_cover import cover as cover_of
from .replay import Mismatch
from .target_option import WrongInput, opened, target_options
from .targets import Target


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
@target_options
@click.option(
    "--share", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True, help="Replay this part of the runs."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Which part.")
@click.option("--action", "actions", multiple=True, help="Only transitions of this action; may be repeated.")
@click.option("--symmetry", is_flag=True, help="Of the states that differ only in how the ranks are named, one's transitions.")
@click.option(
    "--save",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write to this file which transitions were replayed (or --against has).",
)
@click.option(
    "--against",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Only transitions that are not in this file: what a change of the model has brought.",
)
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
    symmetry: bool,
    save: Path | None,
    against: Path | None,
    as_json: bool,
    **budgets: int,
) -> None:
    """Replay every transition of the hardened model at least once on a real store.

    Runs that take all transitions are computed from the state graph; --share replays a fixed part of them.
    """
    known = {row.step for row in (*table.STEPS, *table.ENVIRONMENT)}
    if unknown := sorted(set(actions) - known):
        raise click.UsageError(f"there is no action {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    if save is not None and not save.parent.is_dir():
        raise WrongInput(f"--save {save}: there is no folder {save.parent}")
    before = _read(against)
    system = Hardened(Setting(ranks, 1, iterations), Budgets(**budgets))
    console = Console(stderr=True)
    with opened(kind, address) as store:
        raw = _raw_operation(store)
        try:
            graph = _graph(system, console)
            digest = transitions.digest(graph.packed)
            wanted = _wanted(graph, actions, symmetry, (lambda edge: digest(edge) in before) if before else None)
            runs = cover_of(graph, wanted)
        except KeyboardInterrupt:
            click.echo("interrupted before anything was replayed")
            context.exit(130)
        chosen = sample(runs, share, seed) if share < 1 else runs
        bar = iter(track(range(len(chosen)), console=console, disable=not sys.stderr.isatty(), transient=True))
        try:
            covered = replay_cover(system, store, graph, chosen, lambda _: _advance(bar), wanted)
        except Mismatch as mismatch:
            click.echo(str(mismatch))
            given = " ".join(sys.argv[1:])
            click.echo(f"To reproduce: coxless {given}")
            context.exit(1)
    if save is not None:
        replayed = {id(edge): edge for run in chosen[: covered.runs] for edge in run}
        here = {digest(edge) for edge in graph.all_edges()} & before if before else set()
        transitions.save(save, here.union(map(digest, replayed.values())))
    if as_json:
        click.echo(json.dumps({**covered._asdict(), "share": covered.share, "raw_us": raw * 1e6}, indent=1))
    else:
        _show_coverage(covered, len(graph.edges), raw)
    if covered.interrupted:
        context.exit(130)


def _read(against: Path | None) -> frozenset[str]:
    try:
        return frozenset() if against is None else transitions.read(against)
    except ValueError as error:
        raise WrongInput(str(error)) from None


def _graph(system: Hardened, console: Console) -> Graph:
    """The state graph, with its growth shown on a terminal: bounds that are too large are seen early."""
    try:
        with console.status("the state graph") as status:
            return state_graph(system, lambda states: status.update(f"the state graph: {states} states so far"))
    except TooMany as error:
        raise WrongInput(f"these bounds are too large: {error}") from None


def _wanted(graph: Graph, actions: tuple[str, ...], symmetry: bool, replayed: Wanted | None) -> Wanted | None:
    """What the options ask for; None for everything. Asked of each transition more than once, so it is answered from a set."""
    if not actions and not symmetry and replayed is None:
        return None
    chosen = one_of_each_orbit(graph) if symmetry else None
    asked = {
        id(edge)
        for edge in graph.all_edges()
        if (not actions or edge.action.name in actions)
        and (chosen is None or chosen(edge))
        and not (replayed is not None and replayed(edge))
    }
    return lambda edge: id(edge) in asked


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
        f"in {covered.runs} runs of {covered.steps} steps: no difference{' until it was interrupted' if covered.interrupted else ''}"
    )
    if not covered.steps:
        return
    click.echo(
        f"{covered.seconds:.1f} s; a step: median {covered.median * 1e6:.0f} µs, mean {covered.seconds / covered.steps * 1e6:.0f} µs; "
        f"a raw store operation: {raw * 1e6:.0f} µs"
    )
