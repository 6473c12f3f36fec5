"""A long training run under faults, recorded, validated and checked from outside. See docs/soak.md."""

from __future__ import annotations

import bisect
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from coxless_model import itf
from coxless_traces.validation import prefix, validate

from .checks import stand_still, violations
from .history import History
from .run import Soak
from .schedule import Schedule, load, plan
from .shrink import shrink

SCHEDULE, SMALLEST = "schedule.json", "smallest.json"
BEGIN, END = "<!-- soak -->\n", "<!-- end -->"


def recoveries(history: History) -> list[float]:
    """For each fault the seconds until the first iteration that was begun after it had been decided too."""
    times = sorted(line["t"] for line in history.records().values())
    begun = [bisect.bisect_left(times, done.at) + 1 for done in history.done]  # the first decision after it begins that iteration
    return [times[index] - done.at for index, done in zip(begun, history.done, strict=True) if index < len(times)]


def quantile(values: list[float], share: float) -> float:
    """The value below which this share of them lies."""
    return sorted(values)[int(share * (len(values) - 1))]


def report(history: History, soak: Soak, folder: Path) -> tuple[dict[str, str], dict[str, list[str]]]:
    """What the table says, and what is wrong."""
    wrong = violations(history)
    began = time.perf_counter()
    verdict = validate(folder / "recording")
    took = time.perf_counter() - began
    if not verdict.holds:
        what = [verdict.why] if not verdict.admitted else []
        what += [f"{flaw.file}:{flaw.line}: {flaw.what}" for flaw in verdict.flaws] + list(verdict.broken)
        trace = prefix(verdict, "the explained prefix of the soak")
        if trace is not None:
            itf.write(folder / "prefix.itf.json", trace)
            what.append(f"{verdict.explained} of {verdict.lines} lines explained; they are the trace prefix.itf.json")
        wrong["the model admits the recording"] = what
    counts: Counter[str] = Counter()
    for done in history.done:
        counts[done.kind] += done.count
    times = recoveries(history) or [0.0]
    rows = {
        "SIGKILL of a rank": f"{counts['kill'] + counts['self-kill']} ({counts['self-kill']} of them by itself at a chosen point)",
        "SIGSTOP of a rank": f"{counts['stop'] + counts['long stop']} ({counts['long stop']} longer than the heartbeat timeout)",
        "SIGKILL of the store": str(counts["store"]),
        "cut connections": str(counts["cut"]),
        "faults left out": str(len(soak.left_out)),
        "iterations": str(len(history.records())),
        "committed": str(len(history.committed())),
        "processes that joined": str(sum(bool(life.of("decided")) for life in history.lives)),
        "from a fault to the end of the next whole iteration": (
            f"median {statistics.median(times):.2f} s, 95 % {quantile(times, 0.95):.2f} s, longest {max(times):.2f} s"
        ),
        "longest stand-still": f"{stand_still(history)[0]:.1f} s",
        "keys left in the store": str(history.keys),
        "recording": f"{verdict.explained} of {verdict.lines} lines explained by the model, in {took:.1f} s",
        "violations": str(sum(map(len, wrong.values()))),
    }
    return rows, wrong


def split(page: Path) -> tuple[str, str]:
    """What stands before and after the place for the table."""
    head, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise click.ClickException(f"{page} has no place for the table: {BEGIN.strip()} and {END}")
    return head + begin, end + tail


def publish(page: Path, rows: dict[str, str], command: str) -> None:
    """Puts the table between the two markers of a page."""
    before, after = split(page)
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
    page.write_text(
        f"{before}`{command}`, {time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores:\n\n{table}\n{after}", encoding="utf-8"
    )


@click.command(help=__doc__)
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True)
@click.option("--seed", type=int, default=7, show_default=True)
@click.option("--schedule", "file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Repeat this one.")
@click.option("--plan", "only_plan", is_flag=True, help="Say how many faults are planned, and end.")
@click.option("--folder", type=click.Path(path_type=Path), help="A new folder for all that the run writes; kept.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--shrink",
    "shrink_minutes",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    help="So many minutes are spent on making a failing schedule smaller; 0: none.",
)
@click.option(
    "--publish", "page", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Put the table into this page."
)
def main(
    minutes: float,
    seed: int,
    file: Path | None,
    only_plan: bool,
    folder: Path | None,
    as_json: bool,
    shrink_minutes: float,
    page: Path | None,
) -> None:
    try:
        schedule: Schedule = plan(minutes, seed) if file is None else load(file)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    if only_plan:
        click.echo(json.dumps(schedule.counts(), indent=1, sort_keys=True))
        return
    if folder is not None and folder.exists():
        raise click.ClickException(f"{folder} is there already: name a new one")
    if page is not None:
        split(page)
    folder = (folder or Path(tempfile.mkdtemp(prefix="coxless-soak-")) / "run").absolute()
    command = f"python -m bench.soak {f'--schedule {file}' if file else f'--minutes {minutes:g} --seed {seed}'}"
    began = time.monotonic()
    try:
        history, rows, wrong = once(schedule, folder)
    except KeyboardInterrupt:
        click.echo(f"\n{command} was interrupted; what it wrote is in {folder}", err=True)
        raise SystemExit(130) from None
    rows["the run lasted"] = f"{history.ended - began:.0f} s"
    if as_json:
        click.echo(json.dumps({"command": command, "folder": str(folder), "table": rows, "violations": wrong}, indent=1))
    else:
        table = Table(title=command, show_header=False)
        for name, value in rows.items():
            table.add_row(name, value)
        Console().print(table)
        for name, what in wrong.items():
            for each in what[:10]:
                click.echo(f"{name}: {each}")
    if wrong:
        click.echo(f"{command} failed; everything is in {folder}, and --schedule {folder}/{SCHEDULE} repeats it", err=True)
        if shrink_minutes:
            smaller(schedule, folder, shrink_minutes * 60)
        raise SystemExit(1)
    if page is not None:
        publish(page, rows, command)


def once(schedule: Schedule, folder: Path) -> tuple[History, dict[str, str], dict[str, list[str]]]:
    """One run, in a new folder: what happened, what the table says of it, and what was wrong."""
    folder.mkdir(parents=True)
    schedule.write(folder / SCHEDULE)
    tell = (lambda line: click.echo(f"\r{line}", nl=False, err=True)) if sys.stderr.isatty() else (lambda line: None)
    soak = Soak(schedule, folder, tell)
    history = soak.run()
    return history, *report(history, soak, folder)


def smaller(schedule: Schedule, folder: Path, seconds: float) -> None:
    """Looks for a smaller schedule that fails too, and says where it is."""
    numbers = itertools.count(1)

    def fails(candidate: Schedule) -> bool:
        *_, wrong = once(candidate, folder / f"smaller{next(numbers)}")
        return bool(wrong)

    best = shrink(schedule, fails, seconds=seconds)
    best.write(folder / SMALLEST)
    click.echo(f"{len(best.faults)} of its {len(schedule.faults)} faults are enough: --schedule {folder}/{SMALLEST}", err=True)


if __name__ == "__main__":
    main()
