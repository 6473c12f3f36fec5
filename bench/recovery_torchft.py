"""The same crash under torchft, with its default timeouts: from SIGKILL to the survivors' next committed step, and until the rank is back.

For an environment beside the project's, in which torchft is installed (docs/benchmarks.md has the commands). A replica group is one rank;
the training is that of bench/recovery.py. torchft's Manager listens on every interface: run this in a network namespace of its own.
"""

import contextlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from .recovery import EXIT, FILE, History, publish, together, wait_for

LIGHTHOUSE = "COXLESS_BENCH_LIGHTHOUSE"


def train() -> None:
    """One rank, until the file EXIT exists."""
    begun = time.monotonic()
    import torch
    from torch.distributed import TCPStore
    from torchft import DistributedDataParallel, Manager, Optimizer, ProcessGroupGloo

    torch.set_num_threads(1)
    torch.manual_seed(0)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    net = torch.nn.Linear(64, 64)
    inner = torch.optim.SGD(net.parameters(), lr=1e-3)
    imported = time.monotonic()
    rank = int(os.environ["RANK"])

    def state_dict() -> dict[str, Any]:
        return {"model": net.state_dict(), "optimizer": inner.state_dict()}

    def load_state_dict(state: dict[str, Any]) -> None:
        net.load_state_dict(state["model"])
        inner.load_state_dict(state["optimizer"])

    manager = Manager(
        pg=ProcessGroupGloo(), load_state_dict=load_state_dict, state_dict=state_dict, min_replica_size=2, replica_id=f"rank{rank}",
        store_addr="127.0.0.1", store_port=store.port, rank=0, world_size=1, lighthouse_addr=os.environ[LIGHTHOUSE], hostname="127.0.0.1",
    )  # fmt: skip
    model, optimizer = DistributedDataParallel(manager, net), Optimizer(manager, inner)
    with open(f"{os.environ[FILE]}.{rank}.{os.getpid()}.jsonl", "a", buffering=1) as file:

        def tell(what: str, **details: object) -> None:
            file.write(json.dumps({"t": time.monotonic(), "rank": rank, "what": what, **details}) + "\n")

        tell("started", k=0, begun=begun, imported=imported)
        while not os.path.exists(os.environ[EXIT]):
            before = manager.current_step()
            optimizer.zero_grad()
            time.sleep(0.005)  # the step
            model(torch.randn(16, 64)).square().mean().backward()
            optimizer.step()
            if manager.current_step() > before:
                tell("applied", k=manager.current_step(), quorum=manager._quorum_id)
    os._exit(0)  # its threads would wait for peers that have gone


class Ranks:
    """The rank processes; one that has ended is started again at once."""

    def __init__(self, size: int, environment: dict[str, str]) -> None:
        self._environment = environment
        self._processes = {rank: self._start(rank) for rank in range(size)}

    def _start(self, rank: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", "from bench.recovery_torchft import train; train()"]
        environment = {**os.environ, **self._environment, "RANK": str(rank), "RUST_LOG": "error", "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def poll(self) -> None:
        for rank, process in self._processes.items():
            if process.poll() is not None:
                self._processes[rank] = self._start(rank)

    def kill(self, rank: int) -> None:
        self._processes[rank].kill()

    def end(self) -> None:
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()
            process.wait()


def measure(size: int, kills: int) -> dict[str, list[float]]:
    """Seconds of each part, one entry for each kill."""
    from torchft.coordination import LighthouseServer

    lighthouse = LighthouseServer(bind="127.0.0.1:0", min_replicas=2)
    address = f"http://127.0.0.1:{lighthouse.address().rpartition(':')[2]}"
    parts: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="coxless-recovery-") as folder:
        history, leave = History(f"{folder}/rank"), Path(folder, "exit")
        ranks = Ranks(size, {FILE: f"{folder}/rank", EXIT: str(leave), LIGHTHOUSE: address})
        try:
            for number in range(kills):
                wait_for(ranks.poll, lambda: together(history, size))
                victim, killed = number % size, time.monotonic()
                ranks.kill(victim)
                # Of a quorum that is newer than all before the kill: a step that was in flight may still be committed.
                last = max(row["quorum"] for row in history.since(killed - 2) if row["what"] == "applied" and row["t"] < killed)
                went_on = wait_for(ranks.poll, partial(first, history, killed, partial(without, victim, last)))
                back = wait_for(ranks.poll, partial(first, history, killed, partial(of, victim)))
                started = next(row for row in history.since(killed) if row["rank"] == victim and row["what"] == "started")
                for name, seconds in {
                    "SIGKILL to the next committed update": went_on["t"] - killed,
                    "imports of the new process": started["imported"] - started["begun"],
                    "imports to taking part again": back["t"] - started["imported"],
                }.items():
                    parts.setdefault(name, []).append(seconds)
        finally:
            leave.touch()
            ranks.end()
            lighthouse.shutdown()
    return parts


def first(history: History, after: float, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
    return next((row for row in history.since(after) if row["what"] == "applied" and wanted(row)), None)


def without(victim: int, quorum: int, row: dict[str, Any]) -> bool:
    """Another's update, in a newer quorum."""
    return bool(row["rank"] != victim and row["quorum"] > quorum)


def of(victim: int, row: dict[str, Any]) -> bool:
    return bool(row["rank"] == victim)


@click.command(help=__doc__)
@click.option("--ranks", default=4, show_default=True)
@click.option("--kills", default=6, show_default=True)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("out/bench"), show_default=True)
def main(ranks: int, kills: int, out: Path) -> None:
    os.environ.setdefault("RUST_LOG", "error")  # else the lighthouse logs several lines a step
    version = importlib.metadata.version("torchft")
    parts = measure(ranks, kills)
    title = f"{ranks} ranks, step time 5 ms, {kills} kills; torchft {version}, default timeouts"
    publish(out / "recovery_torchft.md", title, {"torchft": parts})


if __name__ == "__main__":
    main()
