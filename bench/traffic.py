"""What a method says to the store: commands and bytes for each rank and iteration. Counted, not timed."""

import datetime
import os
import re
import socket
import struct
import threading
from collections import Counter
from typing import Any, ClassVar

import torch.distributed as dist

import coxless
from coxless.server import start_server
from coxless.stores.local_etcd import LocalEtcd

from .methods import METHODS, ON_ETCD, Close, Meet


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
        if name in ON_ETCD:
            rows[name] = etcd_traffic(size, iterations // 10)
            continue
        with start_server() as server:
            counts: list[Counter[str]] = [Counter() for _ in range(size)]
            moved = [0] * size
            gate = threading.Barrier(size)

            def work(
                rank: int, name: str = name, server: Any = server, counts: Any = counts, moved: Any = moved, gate: Any = gate
            ) -> None:
                meet: Meet
                close: Close
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
        Cluster.once, Cluster.stream = counted, opened  # type: ignore[method-assign, assignment]
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
