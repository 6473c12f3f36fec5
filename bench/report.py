"""The tables and the plot of the benchmarks: Markdown, SVG and PNG, from the numbers of one run."""

import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

COMPARED = (
    ("coxless", "raw floor"),
    ("coxless", "torch elastic barrier"),
    ("torchft quorum + commit", "coxless"),
    ("torchft Manager", "coxless"),
)


def times(row: Mapping[str, Any], base: Mapping[str, Any]) -> list[float]:
    """How many times as long one method took as another, in each block of their run."""
    return [a / b for a, b in zip(row["blocks"], base["blocks"], strict=True)]


def spread(ratios: list[float]) -> str:
    """The median, and how far it can be trusted: of blocks that are independent, so wide an interval holds the true one in 95 of 100 runs,
    whatever the distribution is."""
    ordered, half = sorted(ratios), statistics.NormalDist().inv_cdf(0.975) * math.sqrt(len(ratios)) / 2
    low = max(0, math.floor(len(ordered) / 2 - half))
    return f"{statistics.median(ordered):.2f} ({ordered[low]:.2f} to {ordered[-1 - low]:.2f})"


def show(title: str, rows: Mapping[str, Any]) -> None:
    """One size, on the terminal, as soon as it is measured."""
    table = Table(title=title, title_justify="left")
    for column in ("method", "median µs", "p99 µs", "ratio", "half of the blocks", "server CPU µs/rank"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name, row in rows.items():
        low, middle, high = statistics.quantiles(row["to_floor"], n=4)
        microseconds = [f"{row[key] * 1e6:.0f}" for key in ("median", "p99", "server")]
        table.add_row(name, *microseconds[:2], f"{middle:.2f}", f"{low:.2f} to {high:.2f}", microseconds[2])
    Console(width=110).print(table)


def write(data: dict[str, Any], out: Path, name: str) -> None:
    (out / f"{name}.md").write_text(markdown(data))
    plot(data, out, name)


def markdown(data: dict[str, Any]) -> str:
    lines = [
        f"Measured on {data['date']} on {data['machine']}, clients and server on the same machine. Ratio: to the raw floor of the same run.",
        "",
    ]
    sizes = [*data["latency"], *data["threads"]]
    runs = {**data["latency"], **data["threads"]}
    names = list(next(iter(runs.values())))
    lines += [
        "| median latency, µs (ratio) | "
        + " | ".join(f"{size} {'threads' if size in data['threads'] else 'ranks'}" for size in sizes)
        + " |"
    ]
    lines += ["|---" * (len(sizes) + 1) + "|"]
    for name in names:
        cells = [cell(runs[size].get(name)) for size in sizes]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| times as long, median of the blocks (its 95 % interval) | " + " | ".join(map(str, sizes)) + " |",
        "|---" * (len(sizes) + 1) + "|",
    ]
    for name, base in COMPARED:
        if name in names and base in names:
            lines.append(
                f"| {name}, to {base} | " + " | ".join(spread(times(runs[size][name], runs[size][base])) for size in sizes) + " |"
            )
    for title, key in (("99th percentile, µs", "p99"), ("server CPU, µs per rank and iteration", "server")):
        lines += ["", f"| {title} | " + " | ".join(map(str, sizes)) + " |", "|---" * (len(sizes) + 1) + "|"]
        for name in names:
            cells = [f"{runs[size][name][key] * 1e6:.0f}" if name in runs[size] else "-" for size in sizes]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
    counted = list(data["traffic"])
    lines += [
        "",
        "| per rank and iteration | " + " | ".join(f"commands, {size} ranks | bytes, {size} ranks" for size in counted) + " |",
    ]
    lines += ["|---" * (2 * len(counted) + 1) + "|"]
    for name in data["traffic"][counted[0]]:
        cells = [
            f"{data['traffic'][size][name]['commands']:.2f} | {data['traffic'][size][name]['bytes']:.0f}" for size in counted
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def cell(row: Mapping[str, Any] | None) -> str:
    return "-" if row is None else f"{row['median'] * 1e6:.0f} ({statistics.median(row['to_floor']):.2f})"


def plot(data: dict[str, Any], out: Path, name: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "coxless"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5.5))
    for method in next(iter({**data["latency"], **data["threads"]}.values())):
        if method == "coxless, recording":
            continue
        points = [
            (int(n), rows[method]["median"] * 1e6)
            for part in ("latency", "threads")
            for n, rows in data[part].items()
            if method in rows
        ]
        strong = method == "coxless"
        axes.plot(*zip(*points, strict=True), marker="o", label=method, linewidth=3 if strong else 1.2, zorder=3 if strong else 2,
                  linestyle="--" if method == "raw floor" else "-")  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("ranks (processes up to 32, then threads, a connection each)")
    axes.set_ylabel("median latency of one meeting, µs")
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.legend(fontsize=8)
    axes.set_title(f"{data['machine']}, {data['date']}", fontsize=8)
    figure.tight_layout()
    for kind in ("svg", "png"):
        figure.savefig(out / f"{name}.{kind}", dpi=130, metadata={"Date": None} if kind == "svg" else None)
