"""How long a crash stands in the way: from SIGKILL to the next committed update, and from a restart to taking part again.

A crew of N ranks under a supervisor trains a small network; one rank at a time is killed from outside, with its death marked by the
supervisor or (in fewer runs) not. Where the time goes is told by the survivors: detection (the step is voted failed, or the first
look at the barrier after it), agreement (the next record), process group, state transfer.
"""

import datetime
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from coxless.supervisor import Supervisor

from .advance import machine

FILE = "COXLESS_BENCH_FILE"
EXIT = "COXLESS_BENCH_EXIT"
NO_MARK = "COXLESS_BENCH_NO_MARK"


def train() -> None:
    """The training script: one rank. It writes what happens to it until the file EXIT exists."""
    begun = time.monotonic()
    import torch

    import coxless
    from coxless.training import DataParallel

    if os.environ.get(NO_MARK):
        os.environ.pop("COXLESS_MEMBER_FILE", None)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)  # the first one imports half of torch
    imported = time.monotonic()
    rank = int(os.environ["RANK"])
    with open(f"{os.environ[FILE]}.{rank}.{os.getpid()}.jsonl", "a", buffering=1) as file:

        def tell(name: str, iteration: Any, details: Mapping[str, object]) -> None:
            file.write(
                json.dumps({"t": time.monotonic(), "rank": rank, "what": name, "k": iteration and iteration.number, **details})
                + "\n"
            )

        tell("started", None, {"begun": begun, "imported": imported})
        timeout = datetime.timedelta(seconds=5 if os.environ.get(NO_MARK) else 30)
        with coxless.join_from_env(heartbeat_interval=datetime.timedelta(seconds=1), heartbeat_timeout=timeout) as crew:
            trainer = DataParallel(crew, model, optimizer, observer=tell)
            for _ in trainer.steps(10**9):
                if os.path.exists(os.environ[EXIT]):
                    break
                time.sleep(0.005)  # the step
                model(torch.randn(16, 64)).square().mean().backward()


def measure(ranks: int, kills: int, *, mark: bool) -> dict[str, list[float]]:
    """Seconds of each part, one entry for each kill."""
    with tempfile.TemporaryDirectory(prefix="coxless-recovery-") as folder:
        prefix, leave = f"{folder}/rank", f"{folder}/exit"
        environment = {FILE: prefix, EXIT: leave} | ({} if mark else {NO_MARK: "1"})
        parts: dict[str, list[float]] = {}
        history = History(prefix)
        # Without the mark the rank stays away until it has been missed: its return would tell the others as well.
        delay = datetime.timedelta(seconds=0 if mark else 10)
        supervisor = Supervisor(
            [sys.executable, "-c", "from bench.recovery import train; train()"], ranks=ranks, on_line=lambda *line: None,
            restart=lambda exited: None if os.path.exists(leave) else delay, environment=environment,
        )  # fmt: skip
        with supervisor:
            for number in range(kills):
                wait_for(supervisor.poll, lambda: together(history, ranks))
                victim = number % ranks
                killed = time.monotonic()
                supervisor.kill(victim)
                wait_for(supervisor.poll, partial(find, history, killed, victim, "applied"))
                for name, seconds in split(history, killed, victim).items():
                    parts.setdefault(name, []).append(seconds)
                back = wait_for(supervisor.poll, partial(returned, history, killed, victim))
                for name, seconds in back.items():
                    parts.setdefault(name, []).append(seconds)
            Path(leave).touch()
            supervisor.request_stop()
    return parts


class History:
    """What all ranks have written so far, read as it grows."""

    def __init__(self, prefix: str) -> None:
        self._folder = Path(prefix).parent
        self._read: dict[Path, int] = {}
        self.rows: list[dict[str, Any]] = []

    def since(self, time: float) -> list[dict[str, Any]]:
        """Rows after that time, in order."""
        for path in sorted(self._folder.glob("rank.*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                whole = file.read().rpartition(b"\n")[0]
            if whole:
                self._read[path] = self._read.get(path, 0) + len(whole) + 1
                self.rows += [json.loads(line) for line in whole.split(b"\n")]
        recent = [row for row in self.rows if row["t"] > time]
        return sorted(recent, key=lambda row: row["t"])


def together(history: History, ranks: int) -> bool:
    """All take part: the last update was applied by every rank, a moment ago."""
    applied: dict[int, int] = {}
    for row in history.since(time.monotonic() - 1.0):
        if row["what"] == "applied":
            applied[row["rank"]] = row["k"]
    return len(applied) == ranks and max(applied.values()) - min(applied.values()) <= 1 and max(applied.values()) > 5


def find(history: History, after: float, victim: int, what: str) -> dict[str, Any] | None:
    """The survivors' first event of this name in an iteration without the victim."""
    rows = [row for row in history.since(after) if row["rank"] != victim]
    opened = next((row for row in rows if row["what"] == "opened"), None)
    if opened is None:
        return None
    return next((row for row in rows if row["what"] == what and row["t"] >= opened["t"]), None)


def split(history: History, killed: float, victim: int) -> dict[str, float]:
    rows = [row for row in history.since(killed) if row["rank"] != victim]
    opened = next(row for row in rows if row["what"] == "opened")
    applied = next(row for row in rows if row["what"] == "applied" and row["t"] >= opened["t"])
    group = float(opened["seconds"])
    decided = max((row["t"] for row in rows if row["what"] == "decided" and row["t"] <= opened["t"]), default=killed)
    failed = next((row["t"] for row in rows if row["what"] == "failed" and row["t"] <= decided), killed)
    return {
        "SIGKILL to the next committed update": applied["t"] - killed,
        "  until the survivors' step had failed": failed - killed,
        "  until the next record was agreed": decided - failed,
        "  process group": group,
        "  the update itself": applied["t"] - opened["t"],
    }


def returned(history: History, killed: float, victim: int) -> dict[str, float] | None:
    rows = [row for row in history.since(killed) if row["rank"] == victim]
    started = next((row for row in rows if row["what"] == "started"), None)
    received = next((row for row in rows if row["what"] == "received"), None)
    applied = next((row for row in rows if row["what"] == "applied"), None)
    if started is None or received is None or applied is None:
        return None
    return {
        "imports of the new process": started["imported"] - started["begun"],
        "imports to taking part again": applied["t"] - started["imported"],
        "  state transfer": float(received["seconds"]),
    }


def wait_for(poll: Callable[[], object], ready: Callable[[], Any], limit: float = 180.0) -> Any:
    """What `ready` returns, as soon as that is anything. Raises TimeoutError after `limit` seconds."""
    until = time.monotonic() + limit
    while time.monotonic() < until:
        poll()
        value = ready()
        if value:
            return value
        time.sleep(0.05)
    raise TimeoutError("the crew did not come to what was waited for")


def publish(path: Path, title: str, columns: dict[str, dict[str, list[float]]]) -> None:
    """A table of medians (and largest values), on the terminal and as Markdown; a row for each part that the first column has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"Measured on {datetime.date.today().isoformat()} on {machine()}: {title}.", ""]
    lines += ["| median seconds (largest) | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    table = Table("median seconds (largest)", *columns)
    for name in next(iter(columns.values())):
        cells = [
            f"{statistics.median(parts[name]):.3f} ({max(parts[name]):.3f})" if name in parts else "-"
            for parts in columns.values()
        ]
        table.add_row(name, *cells)
        lines.append("| " + " | ".join([name.replace("  ", "· "), *cells]) + " |")
    Console().print(table)
    path.write_text("\n".join(lines) + "\n")


@click.command(help=__doc__)
@click.option("--ranks", default=4, show_default=True)
@click.option("--kills", default=12, show_default=True, help="With the supervisor's mark.")
@click.option("--unmarked", default=2, show_default=True, help="Without it: detection by a heartbeat timeout of 5 s.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("out/bench"), show_default=True)
def main(ranks: int, kills: int, unmarked: int, out: Path) -> None:
    columns = {"with the supervisor's mark": measure(ranks, kills, mark=True)}
    if unmarked:
        columns["by a heartbeat timeout of 5 s"] = measure(ranks, unmarked, mark=False)
    publish(out / "recovery.md", f"{ranks} ranks, step time 5 ms, {kills} kills with the mark, {unmarked} without", columns)


if __name__ == "__main__":
    main()
