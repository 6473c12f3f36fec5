"""What recording costs: `python -m bench.recording`. One advance with and without it, in interleaved blocks of one run.

Timings on a shared machine are noisy: read the ratios, medians over the blocks with their 95 percent intervals.
"""

import datetime
import platform

import click
import torch
from rich.console import Console
from rich.table import Table

from .advance import BLOCKS, measure, numbers
from .report import spread, times

WITHOUT, WITH = "coxless", "coxless, recording"


@click.command(help=__doc__)
@click.option("--processes", default="2,4,8", show_default=True, help="Numbers of rank processes.")
@click.option(
    "--iterations", default=40, show_default=True, help=f"Iterations of a block; there are {BLOCKS} blocks of each kind."
)
def main(processes: str, iterations: int) -> None:
    table = Table(title=f"{datetime.date.today()}, Python {platform.python_version()}, torch {torch.__version__}")
    for column in ("ranks", "median µs", "recording: median µs", "ratio", "p99 µs", "recording: p99 µs"):
        table.add_column(column, justify="right")
    for size in numbers(processes):
        rows = measure(size, BLOCKS, iterations, [WITHOUT, WITH], threads=False)
        off, on = rows[WITHOUT], rows[WITH]
        microseconds = [f"{seconds * 1e6:.0f}" for seconds in (off["median"], on["median"], off["p99"], on["p99"])]
        table.add_row(str(size), *microseconds[:2], spread(times(on, off)), *microseconds[2:])
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
