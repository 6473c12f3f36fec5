"""A TCP proxy between the ranks and the store, one port for each rank, that can cut the connections of a rank."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
CHUNK = 1 << 16


class Proxy:
    """Forwards each rank's port to the store, from a thread of its own, until it is closed."""

    def __init__(self, ranks: int, host: str, port: int) -> None:
        self._store = (host, port)
        self._open: list[dict[_Link, None]] = [{} for _ in range(ranks)]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="soak-proxy", daemon=True)
        self._thread.start()
        self._servers = [self._call(self._serve(rank)).result(10) for rank in range(ranks)]
        self.ports = [server.sockets[0].getsockname()[1] for server in self._servers]

    def cut(self, rank: int, how: str) -> int:
        """Cuts all connections of a rank and returns how many. "now": at once, "request": in the middle of the next request,
        "reply": when the next reply comes, which is lost."""

        async def cut() -> int:
            links = list(self._open[rank])
            for link in links:
                link.cut(how)
            return len(links)

        return self._call(cut()).result(10)

    def close(self) -> None:
        async def close() -> None:
            for server in self._servers:
                server.close()
            for links in self._open:
                for link in list(links):
                    link.cut("now")
            await asyncio.sleep(0.05)

        self._call(close()).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _serve(self, rank: int) -> asyncio.Server:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                upstream = await asyncio.open_connection(*self._store)
            except OSError:  # the store is down: so is this connection
                writer.transport.abort()
                return
            link = _Link((reader, writer), upstream)
            self._open[rank][link] = None
            try:
                await link.run()
            finally:
                del self._open[rank][link]

        return await asyncio.start_server(accept, "127.0.0.1", 0)


class _Link:
    """One connection of a rank, and the one to the store that belongs to it."""

    def __init__(
        self, rank: tuple[asyncio.StreamReader, asyncio.StreamWriter], store: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    ) -> None:
        self._rank, self._store = rank, store
        self._how = ""

    def cut(self, how: str) -> None:
        self._how = how
        if how == "now":
            self._abort()

    def _abort(self) -> None:
        for _, writer in (self._rank, self._store):
            writer.transport.abort()

    async def run(self) -> None:
        pumps = [
            asyncio.ensure_future(self._pump(self._rank[0], self._store[1], "request")),
            asyncio.ensure_future(self._pump(self._store[0], self._rank[1], "reply")),
        ]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        self._abort()
        await asyncio.gather(*pumps)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: str) -> None:
        try:
            while data := await reader.read(CHUNK):
                if self._how == direction:
                    if direction == "request":
                        writer.write(data[: len(data) // 2])
                        await writer.drain()
                    return
                writer.write(data)
                await writer.drain()
        except OSError:
            return
