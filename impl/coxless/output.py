"""Forwarding what the ranks print: whole lines, each with its rank, and never a rank that has to wait for the reader.

A pipe that is full blocks whoever writes to it, so one thread only empties the pipes and another only writes. Between them is a bounded
queue: when our own reader is slow (a pager, a stopped terminal), lines are dropped and counted instead of stopping the training.
"""

import contextlib
import logging
import os
import selectors
import stat
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import IO

logger = logging.getLogger(__name__)

OnLine = Callable[[int, str, str], None]
"""Called with rank, "stdout" or "stderr", and the line without its end."""

LONGEST_LOG = 4 << 20
"""Bytes after which a log is moved aside."""
LONGEST_LINE = 64 * 1024
QUEUED_LINES = 100_000


def print_line(rank: int, stream: str, line: str) -> None:
    """`[rank 2] …` on the stream of the same name, in a single write."""
    out = sys.stdout if stream == "stdout" else sys.stderr
    out.write(f"[rank {rank}] {line}\n")
    out.flush()


class Forwarder:
    """Reads the pipes that are given to `follow` and hands every line to `on_line`, in one thread of its own."""

    def __init__(self, on_line: OnLine = print_line) -> None:
        self._on_line = on_line
        self._selector = selectors.DefaultSelector()
        self._streams: dict[int, _Stream] = {}
        self._wake, self._waker = os.pipe()
        os.set_blocking(self._waker, False)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._fresh: deque[_Stream] = deque()
        self._lines: deque[tuple[int, str, str]] = deque()
        self._dropped = 0
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._read_all = False
        self._reader = threading.Thread(target=self._read, name="coxless-output-reader", daemon=True)
        self._writer = threading.Thread(target=self._write, name="coxless-output-writer", daemon=True)
        self._reader.start()
        self._writer.start()

    def follow(self, rank: int, stream: str, pipe: IO[bytes]) -> None:
        """Forward the lines of `pipe` until its end; it belongs to the forwarder from now on."""
        os.set_blocking(pipe.fileno(), False)
        self._fresh.append(_Stream(rank, stream, pipe))
        self._nudge()

    def close(self, patience: float = 1.0) -> None:
        """Forward what has been printed up to now; for at most `patience` seconds, a pipe may be held open by a stranger."""
        self._closing.set()
        self._nudge()
        self._reader.join(patience)
        with self._changed:
            self._read_all = True
            self._changed.notify()
        self._writer.join(patience)

    def _nudge(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full of nudges already
            os.write(self._waker, b"!")

    def _read(self) -> None:
        while True:
            # While closing, a pipe that has nothing to read is done with: its processes are dead.
            ready = self._selector.select(0.05 if self._closing.is_set() else None)
            if not ready and self._closing.is_set() and not self._fresh:
                break
            while self._fresh:
                stream = self._fresh.popleft()
                self._streams[stream.pipe.fileno()] = stream
                self._selector.register(stream.pipe, selectors.EVENT_READ)
            for key, _ in ready:
                if key.fd == self._wake:
                    os.read(self._wake, 4096)
                else:
                    self._take(key.fd)
        for stream in self._streams.values():
            self._queue(stream, stream.rest())
            stream.pipe.close()

    def _take(self, descriptor: int) -> None:
        stream = self._streams[descriptor]
        try:
            data = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return
        except OSError as error:
            logger.debug("cannot read the %s of rank %d: %s", stream.name, stream.rank, error)
            data = b""
        if data:
            self._queue(stream, stream.lines(data))
            return
        self._queue(stream, stream.rest())
        self._selector.unregister(descriptor)
        del self._streams[descriptor]
        stream.pipe.close()

    def _queue(self, stream: "_Stream", lines: list[bytes]) -> None:
        if not lines:
            return
        with self._changed:
            for line in lines:
                if len(self._lines) >= QUEUED_LINES:
                    self._dropped += 1
                else:
                    self._lines.append((stream.rank, stream.name, line.decode(errors="replace")))
            self._changed.notify()

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._read_all)
                if not self._lines:
                    return
                batch, self._lines = self._lines, deque()
                dropped, self._dropped = self._dropped, 0
            try:
                for rank, stream, line in batch:
                    self._on_line(rank, stream, line)
            except (OSError, ValueError) as error:  # our reader has gone (`| head`); the training goes on
                logger.debug("the output of the ranks is read no longer: %s", error)
                self._on_line = _discard
            except Exception:
                logger.exception("the on_line callback failed; the output of the ranks is discarded from here on")
                self._on_line = _discard
            if dropped:
                logger.warning("%d lines of the ranks were dropped: they print faster than this output is read", dropped)


def _discard(rank: int, stream: str, line: str) -> None:
    pass


class _Stream:
    """One pipe, and the part of its last line that has come so far."""

    def __init__(self, rank: int, name: str, pipe: IO[bytes]) -> None:
        self.rank = rank
        self.name = name
        self.pipe = pipe
        self._rest = b""

    def lines(self, data: bytes) -> list[bytes]:
        """The lines that are complete now. A carriage return ends a line too (progress bars); without an end, 64 KiB do."""
        data = self._rest + data
        held = b""
        if data.endswith(b"\r"):  # perhaps the first half of \r\n
            data, held = data[:-1], b"\r"
        *lines, rest = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        while len(rest) >= LONGEST_LINE:
            lines.append(rest[:LONGEST_LINE])
            rest = rest[LONGEST_LINE:]
        self._rest = rest + held
        return lines

    def rest(self) -> list[bytes]:
        rest, self._rest = self._rest.rstrip(b"\r"), b""
        return [rest] if rest else []


class RotatingFile:
    """A log that keeps what came last: when it is full it is renamed to NAME.1, in place of the one before, and begun again."""

    def __init__(self, path: Path, limit: int = LONGEST_LOG) -> None:
        """Raises OSError when it cannot be written."""
        self._path = path
        self._limit = limit
        self._open()

    def _open(self) -> None:
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        status = os.fstat(self._descriptor)
        self._size = status.st_size
        self._regular = stat.S_ISREG(status.st_mode)  # no terminal or pipe

    def write(self, data: bytes) -> None:
        """Raises OSError."""
        if self._regular and self._size and self._size + len(data) > self._limit:
            os.close(self._descriptor)
            os.replace(self._path, f"{self._path}.1")
            self._open()
        self._size += os.write(self._descriptor, data)

    def fill_from(self, pipe: int) -> None:
        """Write what comes out of a pipe, to its end. Whoever writes into the pipe never waits for long: what cannot be written is dropped."""
        while data := os.read(pipe, 1 << 16):
            with contextlib.suppress(OSError):  # a full disk
                self.write(data)
