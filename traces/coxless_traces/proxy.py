"""A TCP proxy between ranks and their store that cuts connections: any of them on command, or one at an exact point of what is said.

    with Proxy(server.address, doors=2) as proxy:
        coxless.join(proxy.addresses[0], ...)
        proxy.cut(1)

It runs in a process of its own: some calls of torch's client keep the interpreter to themselves until the reply is there. Each *door* is
an address to connect to, one for each rank, say. A *line* is a connection that has said that it is a client, counted at its door
from 0 on; connections that say nothing, such as the library's own look whether somebody listens, are passed on and not counted.
"""

import asyncio
import contextlib
import json
import random
import socket
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

from .names import name_of
from .wire import Request, Requests

CUTS = (
    "request lost",
    "request lost, reset",
    "half a request",
    "while it waits",
    "reply lost",
    "reply lost, reset",
    "half a reply",
)
"""request lost: the store never sees it. while it waits: the request has been passed on, its reply is not waited for. reply lost: the
store has replied, the client does not see it. reset: the client is sent RST, not FIN."""


Delays = Mapping[str, float]
"""How long (s) a request is held whose name begins so; the longest beginning counts."""


class Point(NamedTuple):
    """Where to cut: at this request of this line of this door."""

    door: int
    line: int
    request: int | str
    """Its number on the line, from 0 on; or its name as in `Said`, for runs of which each says more or less before it than another."""
    how: str


class Said(NamedTuple):
    """A request that has come through a door."""

    door: int
    line: int
    number: int
    request: str
    name: str
    """`names.name_of` it, and how often the line has said that before."""


def ways_to_cut(request: Request) -> list[str]:
    """Which of CUTS make a difference at this request. (The reply to a request that has timed out is that to its cancel_wait, see `said`.)"""
    ways = ["request lost", "request lost, reset", "half a request", "reply lost", "reply lost, reset"]
    if len(request.data) < 2:
        ways.remove("half a request")
    if request.is_blocking:
        ways.append("while it waits")
    if request.has_long_reply:
        ways.append("half a reply")
    return ways


class Proxy:
    """A proxy in a process of its own, in front of the server at `store` ("host:port")."""

    def __init__(self, store: str, *, doors: int = 1, delays: Sequence[Delays] = (), listen: bool = False) -> None:
        """delays: for each door, how long requests are held, as if that rank were farther away. listen: tell requests apart, so that
        they are recorded, held and can be cut at; without it bytes are passed on as they come, whatever they are."""
        host, _, port = store.rpartition(":")
        given = {
            "host": host,
            "port": int(port),
            "doors": doors,
            "delays": [*delays, *[{}] * (doors - len(delays))],
            "listen": listen,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "coxless_traces.proxy", json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.addresses: list[str] = [f"127.0.0.1:{number}" for number in self._answer()]
        """Where to connect to, for each door."""

    def cut(self, number: int = 1, *, reset: bool = False, seed: int | None = None) -> int:
        """Cut so many of the open connections, chosen at random. Returns how many there were to cut."""
        return int(self._ask("cut", number=number, reset=reset, seed=seed))

    def cut_all(self, *, reset: bool = False) -> int:
        """Cut every open connection. Returns how many there were."""
        return int(self._ask("cut", number=None, reset=reset, seed=None))

    def begin(self, point: Point | None = None) -> None:
        """Cut what is open, forget what was said, count the lines of every door from 0 on, and cut at that point when it comes."""
        self._ask("begin", point=point)

    def said(self) -> list[tuple[Said, list[str]]]:
        """What was said since `begin`, in the order of coming; for each the ways in which it could have been cut."""
        return [(Said(*each), ways) for *each, ways in self._ask("said")]

    def done(self) -> str | None:
        """The request at which the connection was cut; None when it was not: the point, or the reply that was to be lost, has not come."""
        answer: str | None = self._ask("done")
        return answer

    def close(self) -> None:
        """End it, and with it every connection."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def _ask(self, what: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": what, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the proxy has ended with {self._process.wait()}")
        return json.loads(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


# --- the process


class _Cut(Exception):
    """The connection is to end here."""


class _Connection:
    def __init__(self, hub: "_Hub", door: int, client: socket.socket, server: socket.socket) -> None:
        self.hub, self.door, self.client, self.server = hub, door, client, server
        self.line: int | None = None
        self.requests = 0
        self.names: Counter[str] = Counter()
        self.last: list[Any] = []
        """Of `said`, what this connection has said last."""
        self.parser = Requests()
        self.at_reply: str | None = None
        """How to cut when the next reply comes."""
        self.cutting = ""
        """What to call it."""
        self.round = hub.round

    async def run(self) -> None:
        """Until either side ends, or it is cut."""
        tasks = [asyncio.create_task(self._upward()), asyncio.create_task(self._downward())]
        self.hub.open[self] = tasks
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.hub.open.pop(self, None)
            for task in tasks:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, Exception) and not isinstance(result, _Cut | OSError):
                    self.hub.broken = result
            self.client.close()
            self.server.close()

    def cut(self, *, reset: bool) -> None:
        if reset:
            self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        for task in self.hub.open.pop(self, []):
            task.cancel()

    async def _upward(self) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(self.client, 65536):
            if not self.hub.listen:
                await loop.sock_sendall(self.server, data)
                continue
            for request in self.parser.feed(data):
                await self._pass_on(request)

    async def _pass_on(self, request: Request) -> None:
        loop = asyncio.get_running_loop()
        if request.name == "validate":
            self.line = self.hub.next_line(self.door)
        assert self.line is not None
        number, self.requests = self.requests, self.requests + 1
        name = name_of(request)
        self.names[name] += 1
        name = f"{name} #{self.names[name]}"
        if request.name == "cancel_wait":  # the one reply to both is its own
            self.at_reply = None
            self.last[-1:] = [[way for way in self.last[-1] if not way.startswith("reply lost")]]
        self.last = [self.door, self.line, number, str(request), name, ways_to_cut(request)]
        how = None
        if self.round == self.hub.round:
            self.hub.said.append(self.last)
            point = self.hub.point
            if point is not None and point[:2] == (self.door, self.line) and point.request in (number, name):
                # Not one of its ways where it is another request than in the run before.
                how = point.how if point.how in ways_to_cut(request) else "request lost"
                self.hub.point, self.cutting = None, f"{request}: {how}"
        delays = self.hub.delays[self.door]
        if beginnings := [beginning for beginning in delays if name.startswith(beginning)]:
            await asyncio.sleep(delays[max(beginnings, key=len)])
        if how is None:
            await loop.sock_sendall(self.server, request.data)
        elif how.startswith("request lost"):
            self._end(how)
        elif how == "half a request":
            await loop.sock_sendall(self.server, request.data[: len(request.data) // 2])
            self._end(how)
        else:
            if request.has_reply and how != "while it waits":
                self.at_reply = how
            await loop.sock_sendall(self.server, request.data)
            if self.at_reply is None:
                self._end(how)

    async def _downward(self) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(self.server, 65536):
            if self.at_reply is not None:
                if self.at_reply == "half a reply":
                    await loop.sock_sendall(self.client, data[: max(1, len(data) // 2)])
                self._end(self.at_reply)
            await loop.sock_sendall(self.client, data)

    def _end(self, how: str) -> None:
        self.hub.done = self.cutting
        if how.endswith("reset"):
            self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise _Cut


class _Hub:
    def __init__(self, host: str, port: int, doors: int, delays: list[Delays], listen: bool) -> None:
        self.where, self.doors, self.delays, self.listen = (host, port), doors, delays, listen
        self.open: dict[_Connection, list[asyncio.Task[None]]] = {}
        self.said: list[list[Any]] = []
        self.point: Point | None = None
        self.done: str | None = None
        self.round = 0
        self.broken: Exception | None = None
        self._lines = [0] * doors
        self._running: set[asyncio.Task[None]] = set()

    def next_line(self, door: int) -> int:
        self._lines[door] += 1
        return self._lines[door] - 1

    async def serve(self, door: int, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(listener)
            task = asyncio.create_task(self._connect(door, client))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _connect(self, door: int, client: socket.socket) -> None:
        server = socket.socket()
        for each in (client, server):
            each.setblocking(False)
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await asyncio.get_running_loop().sock_connect(server, self.where)
        except OSError:  # the store is down: so is this way to it
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            server.close()
            return
        await _Connection(self, door, client, server).run()

    def answer(self, do: str, **given: Any) -> Any:
        if self.broken is not None:
            raise self.broken
        match do:
            case "cut":
                return self._cut(given["number"], reset=given["reset"], seed=given["seed"])
            case "begin":
                self._cut(None, reset=False, seed=None)
                self.round += 1
                self.said, self.done, self._lines = [], None, [0] * self.doors
                self.point = Point(*given["point"]) if given["point"] else None
                return None
            case "said":
                return self.said
            case "done":
                return self.done
        raise ValueError(do)

    def _cut(self, number: int | None, *, reset: bool, seed: int | None) -> int:
        chosen = list(self.open)
        if number is not None:
            chosen = random.Random(seed).sample(chosen, min(number, len(chosen)))
        for connection in chosen:
            connection.cut(reset=reset)
        return len(chosen)


async def _main(given: dict[str, Any]) -> None:
    hub = _Hub(**given)
    listeners = [socket.create_server(("127.0.0.1", 0), backlog=512) for _ in range(hub.doors)]
    for listener in listeners:
        listener.setblocking(False)
    serving = [asyncio.create_task(hub.serve(door, listener)) for door, listener in enumerate(listeners)]
    print(json.dumps([listener.getsockname()[1] for listener in listeners]), flush=True)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        print(json.dumps(hub.answer(**json.loads(line))), flush=True)
    for task in serving:
        task.cancel()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_main(json.loads(sys.argv[1])))
