"""`python -m examples.digits`: train through crashes, show it, and check it."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from coxless.address import parse
from coxless.errors import CoxlessError
from coxless.supervisor import Event, Exited, Kind, Supervisor

from . import members, schedule
from .drill import PLAN
from .history import Fault, History, read
from .schedule import Kill, Plan

RECORD = "record"  # the folder of what every process did on the store, below that of the run
LATE = timedelta(seconds=3)
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"


@click.command()
@click.option("--ranks", default=4, show_default=True, type=click.IntRange(min=2))
@click.option("--steps", default=300, show_default=True, type=click.IntRange(min=10), help="Updates to commit.")
@click.option("--seed", default=7, show_default=True, help="Draws the kills, when none are given.")
@click.option(
    "--kill", "kills", multiple=True, metavar="PLACE@ITERATION:RANK:RETURN", help="One kill; may be repeated. 'help' explains."
)
@click.option("--step-time", default=0.03, show_default=True, help="Seconds that a step lasts at least.")
@click.option("--accuracy", default=0.95, show_default=True, help="What has to be reached.")
@click.option("--limit", default=170, show_default=True, help="Seconds after which the run is given up.")
@click.option(
    "--store",
    metavar="ADDRESS",
    help="A store that runs already, such as etcd://HOST:2379/RUN, and holds nothing; else one is started.",
)
@click.option(
    "--etcd", is_flag=True, help="On an etcd of three members, of which the leader and another one are killed meanwhile."
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Where everything is written; else a folder below out/."
)
def main(
    ranks: int,
    steps: int,
    seed: int,
    kills: tuple[str, ...],
    step_time: float,
    accuracy: float,
    limit: int,
    store: str | None,
    etcd: bool,
    out: Path | None,
) -> None:
    """Four ranks learn handwritten digits while some of them are killed. Exits with 1 when a promise is not kept."""
    console = Console()
    if "help" in kills:
        for title, words in (("PLACE", schedule.PLACES), ("RETURN", schedule.RETURNS)):
            console.print(title, *(f"  {name:<10} {meaning}" for name, meaning in words.items()), sep="\n")
        console.print("A winner has no RANK: winner@220:never. 'none' alone: no kill at all.")
        return
    try:
        chosen = () if kills == ("none",) else tuple(map(schedule.parse, kills)) or schedule.draw(seed, ranks, steps)
        plan = Plan(ranks, steps, chosen, step_time)
        schedule.check(plan)
        if etcd and store is not None:
            raise ValueError("--etcd starts a store of its own: give no --store with it")
        if store is not None:
            parse(store)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    folder = out or Path("out") / "digits" / time.strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("rank*.jsonl")):
        raise click.UsageError(f"{folder} holds another run")
    plan.save(folder / "plan.json")
    console.print(
        f"{ranks} ranks, {steps} updates; {', '.join(map(str, chosen)) or 'no kills'}; everything is written to {folder}"
    )

    try:
        with members.etcd(steps, lambda text: console.print(f"          {text}")) if etcd else nullcontext() as deaths:
            ended = run(plan, folder, limit, console, store=store, deaths=deaths)
    except CoxlessError as error:
        raise click.ClickException(str(error)) from None
    history = read(folder, plan)
    if not history.decisions:
        console.print("[red]No iteration was ever agreed on.[/]", *_last_words(folder), sep="\n", markup=True)
        sys.exit(1)
    console.print(timeline(history), recoveries(history))
    good = verdict(history, folder, accuracy, ended, console, deaths=deaths)
    if not good:
        console.print(*_last_words(folder), sep="\n", markup=False)
        again = " ".join(
            [
                "python -m examples.digits",
                f"--ranks {ranks} --steps {steps}",
                *(["--etcd"] if etcd else []),
                *(f"--kill {kill}" for kill in chosen or ["none"]),
            ]
        )
        console.print(f"[red]Not all of it is so.[/] To run it again: {again}")
    sys.exit(0 if good else 1)


def run(
    plan: Plan, folder: Path, limit: float, console: Console, *, store: str | None = None, deaths: members.Deaths | None = None
) -> bool:
    """Runs all processes and shows how they get on; whether they ended in time."""

    def restart(exited: Exited) -> timedelta | None:
        kill = plan.kill_of(exited.rank, exited.restarts)
        if kill is None or exited.signal is None:
            return None  # nobody meant it to end: that is an error, to be seen and not to be repaired
        return {"early": timedelta(0), "late": LATE, "never": None}[kill.back]

    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    environment = {
        PLAN: str(folder.resolve()),
        "PYTHONPATH": path,
        "GLOO_SOCKET_IFNAME": LOOPBACK,
        "OMP_NUM_THREADS": "1",
        "COXLESS_TRACE": str(folder.resolve() / RECORD),
    }
    with (folder / "output.log").open("a", encoding="utf-8") as output, _progress(plan, console) as show:
        supervisor = Supervisor(
            [sys.executable, "-m", "examples.digits.drill"],
            ranks=plan.ranks,
            store=store if deaths is None else deaths.address,
            restart=restart,
            max_restarts=len(plan.kills),
            environment=environment,
            on_line=lambda rank, stream, line: print(f"[rank {rank}] {line}", file=output, flush=True),
            on_event=lambda event: show.event(event),
            grace=timedelta(seconds=2),
        )
        deadline = time.monotonic() + limit
        with supervisor:
            seen = 0.0
            ended = False
            while not ended and time.monotonic() < deadline:
                time.sleep(0.02)
                ended = supervisor.poll()
                if time.monotonic() - seen > 0.25:
                    updates = show.iterations(folder)
                    if deaths is not None and not ended:
                        deaths.look(updates)
                    seen = time.monotonic()
            show.iterations(folder)
    if not ended:
        console.print(f"[red]The run was given up after {limit:.0f} s.[/]")
    return ended


class _Show:
    """The bar, and a line for everything that happens."""

    def __init__(self, plan: Plan, progress: Progress) -> None:
        self.plan = plan
        self._progress = progress
        self._bar = progress.add_task("starting", total=plan.steps)
        self._read: dict[Path, int] = {}
        self._began = time.monotonic()
        self._updates = 0

    def event(self, event: Event) -> None:
        """Says what the supervisor saw."""
        if event.rank is None or event.kind in (Kind.STARTED, Kind.MARKED_DEAD, Kind.GAVE_UP):
            return
        text = f"rank {event.rank} "
        if event.kind is Kind.EXITED:
            if event.code == 0:
                return
            kill = self.plan.kill_of(event.rank, event.restarts)
            text += "[red]is killed[/]" if event.signal else f"[red]ended with code {event.code}[/]"
            if event.signal and kill is not None:
                text += f" {schedule.PLACES[kill.place].partition(':')[0]} (iteration {kill.iteration})"
        else:
            text += {Kind.RESTARTED: "[yellow]is started again[/]", Kind.FINISHED: "[green]has finished[/]"}.get(
                event.kind, event.kind
            )
        self._progress.console.print(f"{event.at - self._began:6.1f} s  {text}")

    def iterations(self, folder: Path) -> int:
        """Reads what the ranks have written since the last look; how many updates there are by now."""
        for path in folder.glob("rank*.jsonl"):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(whole)
            for line in map(json.loads, whole.splitlines()):
                if line["event"] == "decided":
                    ranks = " ".join(member.partition(".")[0] for member in line["participants"])
                    self._progress.update(self._bar, description=f"iteration {line['iteration']}, ranks {ranks}")
                elif line["event"] == "applied":
                    self._updates = max(self._updates, line["position"])
                    self._progress.update(self._bar, completed=line["position"])
                elif line["event"] == "received" and line["iteration"] > 1:
                    self._progress.console.print(
                        f"{line['t'] - self._began:6.1f} s  rank {line['me'].partition('.')[0]} [green]has received the state[/]"
                        f" of {line['position']} updates in {line['seconds'] * 1000:.0f} ms (iteration {line['iteration']})"
                    )
        return self._updates


@contextmanager
def _progress(plan: Plan, console: Console) -> Iterator[_Show]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        yield _Show(plan, progress)


def timeline(history: History) -> Table:
    """One line for each epoch: who took part, and why it began."""
    table = Table("iterations", "epoch", "participants", "what happened", title="Timeline")
    before: set[str] = set()
    faults = history.faults()
    for decisions in history.epochs():
        first, last = decisions[0], decisions[-1]
        now = set(first.participants)
        words = []
        if not before:
            words.append("founded; the state of the first went to all")
        previous = history.decisions.get(first.number - 1)
        for member in sorted(before - now):
            fault = next((fault for fault in faults if member in fault.life.members), None)
            words.append(f"rank {_name(member)} {_how(fault)}")
        if previous is not None:
            words.append(f"update of {previous.number} {'counts' if previous.committed else 'dropped and tried again'}")
        words += [f"rank {_name(member)} received the state" for member in sorted(now - before) if before]
        span = str(first.number) if first is last else f"{first.number}-{last.number}"
        table.add_row(span, first.epoch, " ".join(map(_name, first.participants)), "; ".join(words))
        before = now
    return table


def _name(member: str) -> str:
    """Rank, with a prime for each restart."""
    rank, _, incarnation = member.partition(".")
    return rank + "'" * (int(incarnation.partition("-")[0]) - 1)


def _how(fault: Fault | None) -> str:
    return "left" if fault is None else f"was killed {schedule.PLACES[fault.kill.place].partition(':')[0]}"


def recoveries(history: History) -> Table:
    """How long each kill held up the crew."""
    table = Table("killed", "where", "iteration", "SIGKILL to the next committed update", "back", title="Recovery")
    for fault in history.faults():
        kill: Kill = fault.kill
        recovery = "never" if fault.recovery is None else f"{fault.recovery:.2f} s"
        if kill.back == "early":
            recovery += " (the start of its new process)"
        back = "no" if fault.back is None else f"{kill.back}: in iteration {fault.back_at}, after {fault.back - fault.at:.1f} s"
        table.add_row(
            f"rank {fault.life.rank}", schedule.PLACES[kill.place].partition(":")[0], str(kill.iteration), recovery, back
        )
    return table


def verdict(
    history: History, folder: Path, accuracy: float, ended: bool, console: Console, *, deaths: members.Deaths | None = None
) -> bool:
    """Prints every check; whether all hold."""
    from .verdict import checks, recorded  # imports torch: not before the ranks are at work

    results = [
        ("the run ended in time", ended, ""),
        *((c.claim, c.holds, c.shown) for c in checks(history, folder, accuracy=accuracy)),
    ]
    if deaths is not None:
        results.append(("members of etcd were killed meanwhile", deaths.all_done, ", ".join(deaths.done)))
    admitted = recorded(folder / RECORD)
    results.append((admitted.claim, admitted.holds, admitted.shown))
    table = Table("", "", "", title="Verdict", show_header=False)
    for claim, holds, shown in results:
        table.add_row("[green]yes[/]" if holds else "[red]NO[/]", claim, shown)
    console.print(table)
    return all(holds for _, holds, _ in results)


def _last_words(folder: Path) -> list[str]:
    """The end of what the ranks have printed."""
    return (folder / "output.log").read_text(encoding="utf-8").splitlines()[-20:]


if __name__ == "__main__":
    main()
