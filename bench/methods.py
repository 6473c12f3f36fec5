"""The ways to meet at an iteration that are compared, each as `make(rank, size, store, tag) -> (meet, close)`.

`meet(i)` returns when this rank may go on with iteration i. Every method but the native barrier and gloo is written with the store operations
that its original uses, on keys that carry `tag` and i, so that blocks of different methods can be interleaved on one store.
"""

import importlib.util
import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.elastic.utils.store import barrier as elastic_barrier

import coxless
from coxless.stores.local_etcd import find_etcd

LONG = timedelta(minutes=10)
CONNECTING = threading.Lock()
"""Threads connect one after another: hundreds at once would each wait longer for the interpreter than a connection may take."""
Meet = Callable[[int], object]
Close = Callable[[], object]


def nothing() -> None:
    pass


def raw_floor(rank: int, size: int, store: Any, tag: str) -> tuple[Meet, Close]:
    """add; the last one sets, the others wait. Forgives nothing: the floor."""

    def meet(i: int) -> None:
        key = f"{tag}:{i}"
        if store.add(key, 1) == size:
            store.set(f"{key}:full", "1")
        else:
            store.wait([f"{key}:full"], LONG)

    return meet, nothing


def torch_elastic(rank: int, size: int, store: Any, tag: str) -> tuple[Meet, Close]:
    """torch.distributed.elastic.utils.store.barrier."""
    return lambda i: elastic_barrier(store, size, f"{tag}:{i}", 120), nothing


def native_barrier(rank: int, size: int, store: Any, tag: str) -> tuple[Meet, Close]:
    """Store.barrier: one command of the store server."""
    return lambda i: store.barrier(f"{tag}:{i}", size, LONG), nothing


def append_and_get(rank: int, size: int, store: Any, tag: str) -> tuple[Meet, Close]:
    """append, get, set by whoever sees everyone, wait: the barrier that NVIDIA's resiliency extension uses."""

    def meet(i: int) -> None:
        key = f"{tag}:{i}"
        store.append(key, f"{rank},")
        if store.get(key).count(b",") == size:
            store.set(f"{key}:full", "1")
        store.wait([f"{key}:full"], LONG)

    return meet, nothing


def as_drawn(rank: int, size: int, store: Any, tag: str) -> tuple[Meet, Close]:
    """The diagram's six phases with its heartbeat reads, on fresh keys for each iteration (on the keys as drawn it does not keep running)."""
    beats = [f"{tag}:heartbeat_{r}" for r in range(size)]

    def meet(i: int) -> None:
        arrived, consensus, ready = f"{tag}:{i}:arrived", f"{tag}:{i}:consensus", f"{tag}:{i}:ready"
        store.set(beats[rank], f"{time.time():.3f}")
        store.append(arrived, f"{rank},")
        while True:
            names = store.get(arrived).decode().split(",")
            ages = store.multi_get(beats) if i else []
            active = sum(time.time() - float(age) <= 30 for age in ages) if i else size
            if len(names) - 1 >= active:
                break
        store.set(consensus, str(rank))
        if store.get(consensus) == str(rank).encode():
            number = store.add(f"{tag}:counter", 1)
            for other in range(size):
                store.set(f"{tag}:rank_{other}_last_iteration", str(number))
            store.set(ready, str(number))
        else:
            store.wait([ready], LONG)

    return meet, nothing


def gloo_barrier(rank: int, size: int, store: Any, tag: str) -> tuple[Meet, Close]:
    """torch.distributed.barrier on gloo."""
    group = dist.ProcessGroupGloo(dist.PrefixStore(tag, store.clone()), rank, size, LONG)
    return lambda i: group.barrier().wait(), nothing


def torchft_quorum(rank: int, size: int, store: Any, tag: str) -> tuple[Meet, Close]:
    """torchft: what its Manager asks for each step, start_quorum and should_commit, with the rest of a step left out. A replica group is one
    rank; rank 0 runs the lighthouse. Only where torchft is installed."""
    os.environ.setdefault("RUST_LOG", "warn")  # else it logs several lines a step
    from torchft.coordination import ManagerClient, ManagerServer

    lighthouse, address = lighthouse_of(rank, size, store, tag)
    server = ManagerServer(
        replica_id=f"{tag}-{rank}", lighthouse_addr=address, hostname="127.0.0.1", bind="127.0.0.1:0",
        store_addr="", world_size=1, heartbeat_interval=timedelta(milliseconds=100), connect_timeout=LONG, quorum_retries=0,
    )  # fmt: skip
    client = ManagerClient(server.address(), connect_timeout=LONG)

    def meet(i: int) -> None:
        client._quorum(
            group_rank=0, step=i, checkpoint_metadata="", shrink_only=False, timeout=LONG, commit_failures=0, init_sync=False
        )  # fmt: skip
        client.should_commit(group_rank=0, step=i, should_commit=True, timeout=LONG)

    def close() -> None:
        server.shutdown()
        if lighthouse is not None:
            lighthouse.shutdown()

    return meet, close


def torchft_manager(rank: int, size: int, store: Any, tag: str) -> tuple[Meet, Close]:
    """torchft as its users call it, beside `Crew.advance` as coxless's do: Manager.start_quorum and Manager.should_commit, nothing reduced in
    between. The one above is what these two ask its servers for."""
    os.environ.setdefault("RUST_LOG", "warn")
    from torchft import Manager, ProcessGroupGloo

    lighthouse, address = lighthouse_of(rank, size, store, tag)
    own = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    manager = Manager(
        pg=ProcessGroupGloo(), load_state_dict=lambda state: None, state_dict=dict, min_replica_size=size, replica_id=f"{tag}-{rank}",
        store_addr="127.0.0.1", store_port=own.port, rank=0, world_size=1, lighthouse_addr=address, hostname="127.0.0.1", init_sync=False,
        timeout=LONG, quorum_timeout=LONG, connect_timeout=LONG,
    )  # fmt: skip

    manager.bench_store = own  # the server lives as long as this object

    def meet(i: int) -> None:
        manager.start_quorum()
        manager.should_commit()

    def close() -> None:
        manager.shutdown(wait=False)
        if lighthouse is not None:
            lighthouse.shutdown()

    return meet, close


def lighthouse_of(rank: int, size: int, store: Any, tag: str) -> tuple[Any, str]:
    """torchft's lighthouse, which rank 0 runs, and its address."""
    from torchft.coordination import LighthouseServer

    key = f"{tag}:lighthouse"
    lighthouse = LighthouseServer(bind="127.0.0.1:0", min_replicas=size) if rank == 0 else None
    if lighthouse is not None:
        store.set(key, f"http://127.0.0.1:{lighthouse.address().rpartition(':')[2]}")
    return lighthouse, store.get(key).decode()


def coxless_advance(rank: int, size: int, store: Any, tag: str, *, record: str = "") -> tuple[Meet, Close]:
    """coxless: one advance, in normal use: heartbeats on. The store must be this method's own: there is one crew on a store."""
    if record:
        os.environ["COXLESS_TRACE"] = record
    with CONNECTING:
        crew = coxless.join(
            store, rank=rank, world_size=size, patience=timedelta(seconds=0.5), join_timeout=LONG / 4, timeout=LONG / 3
        )
    os.environ.pop("COXLESS_TRACE", None)
    # Else those who wait at founding take the processors from those who still connect, which may take ten seconds and no more.
    store.barrier(f"{tag}:connected", size, LONG)
    crew.advance()
    return lambda i: crew.advance(), crew.leave


FLOOR = "raw floor"
METHODS: dict[str, Callable[..., tuple[Meet, Close]]] = {
    FLOOR: raw_floor,
    "torch elastic barrier": torch_elastic,
    "Store.barrier": native_barrier,
    "append+get barrier (as NVRx)": append_and_get,
    "as drawn": as_drawn,
    "gloo barrier": gloo_barrier,
    "coxless": coxless_advance,
    "coxless, recording": coxless_advance,
}
if importlib.util.find_spec("torchft"):  # in an environment beside the project's: docs/benchmarks.md says how
    METHODS |= {"torchft quorum + commit": torchft_quorum, "torchft Manager": torchft_manager}
ON_ETCD = ON_DISK, IN_MEMORY = ("coxless on etcd", "coxless on etcd, in memory")
if find_etcd() and importlib.util.find_spec("aetcd"):
    METHODS |= {ON_DISK: coxless_advance, IN_MEMORY: coxless_advance}
