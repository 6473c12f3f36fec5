"""What agreeing on an iteration costs, beside barriers that forgive nothing: latency, commands, bytes, server CPU.

One store server process, N rank processes (or threads with a connection each, spread over 64 processes), all methods interleaved in blocks of
one run, in another order each time. Timings on a shared machine are noisy and drift: read the ratios. Each is the median over the blocks of
what a method took to what another took in the same block.
Where etcd is installed the crew is measured on it too: three members on this machine, which write to its disk what they have agreed on
before they say so, and the same in memory.
"""

import contextlib
import datetime
import itertools
import json
import multiprocessing
import os
import platform
import queue
import random
import re
import shutil
import statistics
import tempfile
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypedDict

import click
import torch

import coxless
from coxless.server import start_server
from coxless.stores.local_etcd import LocalEtcd

from . import methods, report
from .methods import FLOOR, IN_MEMORY, METHODS, ON_ETCD
from .traffic import traffic

BLOCKS = 45
FEWER_BLOCKS = 15
"""Of threads and on etcd, where each takes long."""
WARM_UP = 5
PROCESSES = 64
"""Over so many the threads are spread: all in one would wait for its interpreter more than for the store."""
NICE = -10
"""Of the servers, where this process may say so."""


def options_of(name: str, record: str) -> dict[str, str]:
    return {"record": record} if name.endswith("recording") else {}


def run_rank(
    rank: int, size: int, servers: "Servers", names: list[str], blocks: int, iterations: int, record: str
) -> dict[str, Any]:
    """One rank's share of a run: for each method the median (s) of each block, the 99th percentile (s) of all, and the server's CPU (s) over
    its blocks, as rank 0 reads it."""
    with methods.CONNECTING:
        store = coxless.connect(servers.address(names[0]))
    samples: dict[str, list[list[float]]] = {name: [] for name in names}
    server = dict.fromkeys(names, 0.0)
    meets = {}
    for number, name in enumerate(names):
        with methods.CONNECTING:
            client = coxless.connect(servers.address(name))
        meets[name] = METHODS[name](rank, size, client, f"m{number}", **options_of(name, record))
    for block in range(blocks):
        # the same order for all ranks, another one in each block: what a method leaves behind does not always meet the same one after it
        for name in random.Random(block).sample(names, len(names)):
            meet, _ = meets[name]
            first = block * (iterations + WARM_UP)
            store.barrier(f"start:{block}:{name}", size, methods.LONG)
            for i in range(first, first + WARM_UP):
                meet(i)
            store.barrier(f"warm:{block}:{name}", size, methods.LONG)
            before = servers.cpu(name) if rank == 0 else 0.0
            taken = []
            for i in range(first + WARM_UP, first + WARM_UP + iterations):
                begun = time.perf_counter()
                meet(i)
                taken.append(time.perf_counter() - begun)
            samples[name].append(taken)
            store.barrier(f"end:{block}:{name}", size, methods.LONG)
            if rank == 0:
                server[name] += servers.cpu(name) - before
    for name in names:
        meets[name][1]()
    return {"blocks": {name: list(map(statistics.median, taken)) for name, taken in samples.items()},
            "p99": {name: statistics.quantiles(itertools.chain(*taken), n=100)[98] for name, taken in samples.items()},
            "server": server}  # fmt: skip


class Servers:
    """Where each method finds its store. There is one crew on a store, so each that runs a crew has its own."""

    def __init__(self, names: list[str], stack: contextlib.ExitStack) -> None:
        tcp, recording = (stack.enter_context(start_server()) for _ in range(2))
        for server in (tcp, recording):
            put_first(server.pid)
        self._places: dict[str, tuple[str, tuple[int, ...]]] = dict.fromkeys(names, (tcp.address, (tcp.pid,)))
        for name in names:
            if name.endswith("recording"):
                self._places[name] = (recording.address, (recording.pid,))
            elif name in ON_ETCD:
                cluster = stack.enter_context(LocalEtcd(3, in_memory=name == IN_MEMORY))
                self._places[name] = (cluster.address("bench"), tuple(map(cluster.pid, range(3))))

    def address(self, name: str) -> str:
        return self._places[name][0]

    def cpu(self, name: str) -> float:
        """Processor time (s) that the servers of this method have used so far."""
        total = 0
        for pid in self._places[name][1]:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / os.sysconf("SC_CLK_TCK")


def put_first(pid: int) -> None:
    """Give a server's process precedence, where this process may. Else it has one share of the processors' time among a thousand clients',
    which in use have machines of their own. Linux keeps a nice value for each thread (that of the process is its main thread's, and
    serves nobody), and where it groups them by session (autogroup), those count within the session only, which has one of its own."""
    with contextlib.suppress(PermissionError, FileNotFoundError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            os.setpriority(os.PRIO_PROCESS, int(thread), NICE)
        Path(f"/proc/{pid}/autogroup").write_text(f"{NICE}\n")


class Row(TypedDict):
    """What one method took in one run: seconds, of each block and of all blocks; the server's CPU is per rank and iteration. `to_floor`: how
    many times as long as the raw floor, in each block, if that was measured too."""

    blocks: list[float]
    to_floor: list[float]
    median: float
    p99: float
    server: float


def measure(size: int, blocks: int, iterations: int, names: list[str], *, threads: bool) -> dict[str, Row]:
    """One run of these methods: so many blocks of each, and iterations in a block."""
    record = tempfile.mkdtemp(prefix="coxless-bench-")
    try:
        with contextlib.ExitStack() as stack:
            servers = Servers(names, stack)
            arguments = [(rank, size, servers, names, blocks, iterations, record) for rank in range(size)]
            results = in_processes(arguments, min(size, PROCESSES) if threads else size)
    finally:
        shutil.rmtree(record, ignore_errors=True)
    table: dict[str, Row] = {}
    for name in names:
        medians = list(map(statistics.median, zip(*(result["blocks"][name] for result in results), strict=True)))
        table[name] = {
            "blocks": medians,
            "to_floor": [],
            "median": statistics.median(medians),
            "p99": statistics.median(result["p99"][name] for result in results),
            "server": results[0]["server"][name] / (blocks * iterations * size),
        }
    if FLOOR in table:
        for row in table.values():
            row["to_floor"] = report.times(row, table[FLOOR])
    return table


def measure_all(size: int, iterations: int, names: list[str], *, threads: bool) -> dict[str, Row]:
    """Those on etcd in a run of their own, also with the floor: two clusters of three members, and as many clients again, are a company that
    the others do not have in use."""
    plain = [name for name in names if name not in ON_ETCD]
    table = measure(size, FEWER_BLOCKS if threads else BLOCKS, iterations, plain, threads=threads)
    if len(plain) < len(names):
        on_etcd = measure(size, FEWER_BLOCKS, iterations, [FLOOR, *(name for name in names if name in ON_ETCD)], threads=threads)
        table |= {name: row for name, row in on_etcd.items() if name != FLOOR}
    return table


def in_processes(arguments: list[tuple[Any, ...]], processes: int) -> list[dict[str, Any]]:
    """The ranks dealt out to so many processes; where one has several, each is a thread of it."""
    # fork, before anything here talks to a store: torch is imported once for all
    context = multiprocessing.get_context("fork")
    results = context.Queue()

    def one(given: tuple[Any, ...]) -> None:
        try:
            results.put((given[0], run_rank(*given)))
        except Exception:  # noqa: BLE001  # whatever it is, it must not stay in a future that nobody looks at
            traceback.print_exc()
            os._exit(1)  # at once, since the others wait for this one

    def work(mine: list[tuple[Any, ...]]) -> None:
        torch.set_num_threads(1)
        with ThreadPoolExecutor(len(mine)) as pool:
            for _ in pool.map(one, mine):
                pass

    started = [context.Process(target=work, args=(arguments[number::processes],)) for number in range(processes)]
    for process in started:
        process.start()
    collected: dict[int, dict[str, Any]] = {}
    while len(collected) < len(arguments):
        try:
            rank, result = results.get(timeout=1)
            collected[rank] = result
        except queue.Empty:
            if any(process.exitcode for process in started):
                for process in started:
                    process.kill()
                raise click.ClickException("a rank of the benchmark failed; what it printed is above") from None
    for process in started:
        process.join()
    return [collected[rank] for rank in range(len(arguments))]


@click.command(help=__doc__)
@click.option("--processes", default="2,4,8,16,32", show_default=True, help="Numbers of rank processes.")
@click.option(
    "--threads",
    default="64,128,256,512,1024",
    show_default=True,
    help="Numbers of threads, a connection each, in 64 processes; empty: none.",
)
@click.option(
    "--iterations",
    default=40,
    show_default=True,
    help=f"Iterations of a block; there are {BLOCKS} blocks of each method ({FEWER_BLOCKS} with threads and on etcd).",
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("out/bench"), show_default=True)
@click.option("--name", default="advance", show_default=True, help="Of the files that are written.")
def main(processes: str, threads: str, iterations: int, out: Path, name: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    data: dict[str, Any] = {
        "machine": machine(),
        "date": datetime.date.today().isoformat(),
        "latency": {},
        "threads": {},
        "traffic": {},
    }

    def save() -> None:
        (out / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")
        report.write(data, out, name)

    names = list(METHODS)
    for size in numbers(processes):
        data["latency"][size] = measure_all(size, iterations, names, threads=False)
        report.show(f"{size} processes", data["latency"][size])
    counted = [name for name in names if not name.endswith("recording") and "torchft" not in name]
    # in a process of its own: what gRPC starts in the one that talks to etcd, every rank that is forked from it would start, too
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        for size in (4, 16):
            data["traffic"][size] = pool.submit(traffic, size, counted).result()
    if data["latency"]:
        save()
    for size in numbers(threads):
        # gloo connects every pair, and recording is no different here: neither says anything at these sizes
        some = [name for name in names if name not in ("gloo barrier", "coxless, recording", "as drawn")]
        if size > 256:  # hundreds of connections for each method more, and minutes
            some = [name for name in some if name in (FLOOR, "torch elastic barrier", "Store.barrier", "coxless")]
        elif size > 128:  # a second and more for each, in one Python process: that is not etcd's time any more
            some = [name for name in some if name not in ON_ETCD]
        try:
            data["threads"][size] = measure_all(size, max(4, iterations * 16 // size), some, threads=True)
        except click.ClickException as error:
            click.echo(f"{size} threads are left out: {error.message}", err=True)
            continue
        report.show(f"{size} threads", data["threads"][size])
        save()
    click.echo(f"{out / name}.md, {out / name}.svg")


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def machine() -> str:
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{os.cpu_count()} cores ({model.group(1) if model else platform.machine()}), Python {platform.python_version()}, torch {torch.__version__}"


if __name__ == "__main__":
    main()
