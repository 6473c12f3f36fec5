"""How long a crew takes to be founded: from the first rank's `join` to the moment when the last one has iteration 1.

The processes have imported torch before, which takes seconds and has nothing to do with the protocol; connecting is counted. Every round
has a store server of its own.
"""

import datetime
import multiprocessing
import statistics
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

import coxless
from coxless.server import start_server

from .advance import machine, numbers


def found(rank: int, size: int, address: str, gate: Barrier, results: Any) -> None:
    """When this rank joined and when it had iteration 1, on the clock that all processes share."""
    torch.set_num_threads(1)
    gate.wait()
    joined = time.monotonic()
    with coxless.join(address, rank=rank, world_size=size) as crew:
        crew.advance()
        results.put((joined, time.monotonic()))
        gate.wait()  # nobody leaves before all have it


def measure(size: int) -> float:
    """Seconds of one founding."""
    context = multiprocessing.get_context("fork")  # torch is imported once for all
    gate, results = context.Barrier(size), context.Queue()
    with start_server() as server:
        processes = [context.Process(target=found, args=(rank, size, server.address, gate, results)) for rank in range(size)]
        for process in processes:
            process.start()
        times = [results.get(timeout=120) for _ in processes]
        for process in processes:
            process.join()
    return float(max(founded for _, founded in times) - min(joined for joined, _ in times))


@click.command(help=__doc__)
@click.option("--processes", default="2,4,8,16,32", show_default=True, help="Numbers of rank processes.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("out/bench"), show_default=True)
def main(processes: str, rounds: int, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    table = Table("ranks", "median ms", "largest ms")
    lines = [
        f"Measured on {datetime.date.today().isoformat()} on {machine()}: {rounds} foundings each.",
        "",
        "| ranks | median ms | largest ms |",
        "|---:|---:|---:|",
    ]
    for size in numbers(processes):
        seconds = [measure(size) for _ in range(rounds)]
        cells = [str(size), f"{statistics.median(seconds) * 1e3:.0f}", f"{max(seconds) * 1e3:.0f}"]
        table.add_row(*cells)
        lines.append("| " + " | ".join(cells) + " |")
    Console().print(table)
    (out / "startup.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
