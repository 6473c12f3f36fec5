"""What agreeing on an iteration costs, beside barriers that forgive nothing: latency, commands, bytes, server CPU.

One store server process, N rank processes (or threads with a connection each, spread over 16 processes), all methods interleaved in blocks of one run, medians.
Timings on a shared machine are noisy: read the ratios. Where etcd is installed the crew is measured on it too: three members on this
machine, which write to its disk what they have agreed on before they say so, and the same in memory.
"""

import contextlib
import datetime
import importlib.util
import json
import multiprocessing
import os
import platform
import queue
import re
import shutil
import socket
import statistics
import struct
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import click
import torch
import torch.distributed as dist

import coxless
from coxless.server import start_server
from coxless.stores.local_etcd import LocalEtcd, find_etcd

from . import methods, report

METHODS: dict[str, Callable[..., tuple[methods.Meet, methods.Close]]] = {
    "raw floor": methods.raw_floor,
    "torch elastic barrier": methods.torch_elastic,
    "Store.barrier": methods.native_barrier,
    "append+get barrier (as NVRx)": methods.append_and_get,
    "as drawn": methods.as_drawn,
    "gloo barrier": methods.gloo_barrier,
    "coxless": methods.coxless_advance,
    "coxless, recording": methods.coxless_advance,
}
if importlib.util.find_spec("torchft"):  # in an environment beside the project's: `make bench-torchft`
    METHODS |= {"torchft quorum + commit": methods.torchft_quorum, "torchft Manager": methods.torchft_manager}
ON_DISK, IN_MEMORY = "coxless on etcd", "coxless on etcd, in memory"
if find_etcd() and importlib.util.find_spec("aetcd"):
    METHODS |= {ON_DISK: methods.coxless_advance, IN_MEMORY: methods.coxless_advance}
BLOCKS = 6
PROCESSES = 16
"""Over so many the threads are spread: all in one would wait for its interpreter more than for the store."""


def options_of(name: str, record: str) -> dict[str, str]:
    return {"record": record} if name.endswith("recording") else {}


def run_rank(rank: int, size: int, servers: "Servers", names: list[str], iterations: int, record: str) -> dict[str, Any]:
    """One rank's share of a run: the samples (s) of each method, and the server's CPU (s) over its blocks, as rank 0 reads it."""
    with methods.CONNECTING:
        store = coxless.connect(servers.address(names[0]))
    samples: dict[str, list[float]] = {name: [] for name in names}
    server: Counter[str] = Counter()
    meets = {}
    for number, name in enumerate(names):
        with methods.CONNECTING:
            client = coxless.connect(servers.address(name))
        meets[name] = METHODS[name](rank, size, client, f"m{number}", **options_of(name, record))
    for block in range(BLOCKS):
        for name in names:
            meet, _ = meets[name]
            first = block * (iterations + 5)
            store.barrier(f"start:{block}:{name}", size, methods.LONG)
            for i in range(first, first + 5):
                meet(i)
            store.barrier(f"warm:{block}:{name}", size, methods.LONG)
            before = servers.cpu(name) if rank == 0 else 0.0
            for i in range(first + 5, first + 5 + iterations):
                begun = time.perf_counter()
                meet(i)
                samples[name].append(time.perf_counter() - begun)
            store.barrier(f"end:{block}:{name}", size, methods.LONG)
            if rank == 0:
                server[name] += servers.cpu(name) - before
    for name in names:
        meets[name][1]()
    return {"medians": {name: statistics.median(values) for name, values in samples.items()},
            "p99": {name: statistics.quantiles(values, n=100)[98] for name, values in samples.items()},
            "server": dict(server)}  # fmt: skip


class Servers:
    """Where each method finds its store. There is one crew on a store, so each that runs a crew has its own."""

    def __init__(self, names: list[str], stack: contextlib.ExitStack) -> None:
        tcp, recording = (stack.enter_context(start_server()) for _ in range(2))
        self._places = dict.fromkeys(names, (tcp.address, (tcp.pid,)))
        for name in names:
            if name.endswith("recording"):
                self._places[name] = (recording.address, (recording.pid,))
            elif "etcd" in name:
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


def measure(size: int, iterations: int, names: list[str], *, threads: bool) -> dict[str, dict[str, float]]:
    """One run. Returns for each method: median (s), p99 (s), ratio to the floor, server CPU (s) per rank and iteration."""
    record = tempfile.mkdtemp(prefix="coxless-bench-")
    try:
        with contextlib.ExitStack() as stack:
            servers = Servers(names, stack)
            arguments = [(rank, size, servers, names, iterations, record) for rank in range(size)]
            results = in_processes(arguments, min(size, PROCESSES) if threads else size)
    finally:
        shutil.rmtree(record, ignore_errors=True)
    table = {}
    for name in names:
        table[name] = {
            "median": statistics.median(result["medians"][name] for result in results),
            "p99": statistics.median(result["p99"][name] for result in results),
            "server": results[0]["server"][name] / (BLOCKS * iterations * size),
        }
    for row in table.values():
        row["ratio"] = row["median"] / table["raw floor"]["median"]
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


class Counting:
    """A store client whose commands are counted as the wire has them (get is two)."""

    COST: ClassVar = {"get": 2, "multi_get": 2}

    def __init__(self, store: dist.Store, counter: Counter[str]) -> None:
        self._store, self._counter = store, counter

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._store, name)
        if name not in {
            "add",
            "set",
            "get",
            "wait",
            "append",
            "compare_set",
            "multi_get",
            "check",
            "delete_key",
            "list_keys",
            "barrier",
            "multi_set",
        }:
            return value

        def counted(*arguments: Any) -> Any:
            self._counter["commands"] += self.COST.get(name, 1)
            return value(*arguments)

        return counted


def traffic(size: int, names: list[str], iterations: int = 1000) -> dict[str, dict[str, float]]:
    """Store commands and bytes (both ways) per rank and iteration, counted in threads; gloo's own traffic is not the store's. Of coxless
    what it deletes in the background, too: so many iterations that it comes to that several times."""
    rows: dict[str, dict[str, float]] = {}
    for name in names:
        if name == "gloo barrier":
            continue
        if "etcd" in name:
            rows[name] = etcd_traffic(size, iterations // 10)
            continue
        with start_server() as server:
            counts: list[Counter[str]] = [Counter() for _ in range(size)]
            moved = [0] * size
            gate = threading.Barrier(size)

            def work(
                rank: int, name: str = name, server: Any = server, counts: Any = counts, moved: Any = moved, gate: Any = gate
            ) -> None:
                client = coxless.connect(server.address)
                if name.startswith("coxless"):
                    crew = coxless.join(client, rank=rank, world_size=size, patience=datetime.timedelta(seconds=0.5))
                    crew.advance()
                    connections = crew._driver.connection, crew._housekeeper._connection
                    inner = [connection.store for connection in connections]
                    for connection in connections:
                        connection.store = Counting(connection.store, counts[rank])
                    connections[0].arrive = connections[0].store.barrier
                    meet, close = (lambda i: crew.advance()), crew.leave
                else:
                    meet, close = METHODS[name](rank, size, Counting(client, counts[rank]), "m")
                    inner = [client]
                meet(0)
                gate.wait()
                counts[rank].clear()
                before = sum(map(bytes_of, inner))
                gate.wait()
                for i in range(1, iterations + 1):
                    meet(i)
                moved[rank] = sum(map(bytes_of, inner)) - before
                gate.wait()
                close()

            threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        rows[name] = {
            "commands": sum(count["commands"] for count in counts) / (size * iterations),
            "bytes": sum(moved) / (size * iterations),
        }
    return rows


def etcd_traffic(size: int, iterations: int) -> dict[str, float]:
    """Calls to etcd (transactions and watches) per rank and iteration, and the bytes of what is asked and answered, without gRPC's own."""
    from coxless.stores.etcd_cluster import Cluster

    counter: Counter[str] = Counter()
    once, stream = Cluster.once, Cluster.stream

    def counted(cluster: Cluster, method: Any, request: Any, deadline: Any) -> Any:
        answer = once(cluster, method, request, deadline)
        counter["commands"] += 1
        counter["bytes"] += request.ByteSize() + answer.ByteSize()
        return answer

    def opened(cluster: Cluster, method: Any, request: Any, *rest: Any) -> Any:
        counter["commands"] += 1
        counter["bytes"] += request.ByteSize()
        return stream(cluster, method, request, *rest)

    gate = threading.Barrier(size)

    def work(rank: int, address: str) -> None:
        with coxless.join(address, rank=rank, world_size=size, patience=datetime.timedelta(seconds=0.5)) as crew:
            crew.advance()
            crew.advance()
            gate.wait()
            counter.clear()
            gate.wait()
            for _ in range(iterations):
                crew.advance()
            gate.wait()

    with LocalEtcd(1) as cluster:
        Cluster.once, Cluster.stream = counted, opened  # type: ignore[method-assign]
        try:
            threads = [threading.Thread(target=work, args=(rank, cluster.address("traffic"))) for rank in range(size)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            Cluster.once, Cluster.stream = once, stream  # type: ignore[method-assign]
    return {name: counter[name] / (size * iterations) for name in ("commands", "bytes")}


def bytes_of(store: dist.Store) -> int:
    """Bytes sent and received so far on the client's connection, as the kernel counts them (Linux, TCP_INFO)."""
    match = re.search(r"client=.*?\bfd=(\d+)", repr(store))
    assert match is not None
    with socket.socket(fileno=os.dup(int(match.group(1)))) as duplicate:
        info = duplicate.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    acked, received = struct.unpack_from("=QQ", info, 120)
    return int(acked + received)


@click.command(help=__doc__)
@click.option("--processes", default="2,4,8,16,32", show_default=True, help="Numbers of rank processes.")
@click.option(
    "--threads",
    default="64,128,256,512,1024",
    show_default=True,
    help="Numbers of threads, a connection each, in 16 processes; empty: none.",
)
@click.option("--iterations", default=100, show_default=True, help="Iterations of a block; there are 6 blocks of each method.")
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
        data["latency"][size] = measure(size, iterations, names, threads=False)
        report.show(f"{size} processes", data["latency"][size])
    for size in (4, 16):
        data["traffic"][size] = traffic(
            size, [name for name in names if not name.endswith("recording") and "torchft" not in name]
        )
    if data["latency"]:
        save()
    for size in numbers(threads):
        # gloo connects every pair, and recording is no different here: neither says anything at these sizes
        some = [name for name in names if name not in ("gloo barrier", "coxless, recording", "as drawn")]
        if size > 256:  # hundreds of connections for each method more, and minutes
            some = [name for name in some if name in ("raw floor", "torch elastic barrier", "Store.barrier", "coxless")]
        elif size > 128:  # a second and more for each, in one Python process: that is not etcd's time any more
            some = [name for name in some if "etcd" not in name]
        data["threads"][size] = measure(size, max(10, iterations * 16 // size), some, threads=True)
        report.show(f"{size} threads", data["threads"][size])
        save()  # so that what comes later, and takes longest, can fail alone
    click.echo(f"{out / name}.md, {out / name}.svg")


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def machine() -> str:
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{os.cpu_count()} cores ({model.group(1) if model else platform.machine()}), Python {platform.python_version()}, torch {torch.__version__}"


if __name__ == "__main__":
    main()
