"""Recording what a process does on the store, as JSON lines, so that the model can be asked whether it could have done the same.

With COXLESS_TRACE=DIR each process writes a file of its own there. A line is one write() with O_APPEND, after the operation has its
reply: a process that is killed loses at most the line of the operation (or of the fast path) in flight, or leaves that line torn at the
end. Times are CLOCK_MONOTONIC (ns), which all processes of one host share. A file ends at COXLESS_TRACE_LIMIT bytes (64 MiB unless set),
or when the disk is full, with a line that says so. Without COXLESS_TRACE nothing is recorded, and no clock is read.

    {"n": 7, "t": "op", "s": "sign", "o": "Append", "a": ["global_iteration_barrier:4:arrived", "0.1-ab.f,"], "r": null, "b": 8115…, "e": 8115…}
    {"n": 8, "t": "fast", "k": 5, "size": 4, "x": "c1 …", "d": "c1 …", "r": "c1 …", "b": 8115…, "e": 8116…}

n counts the lines of the file; t is one of start, vote, op, broken (the operation may or may not have taken effect), fast, delete, forgot
(keys that are not deleted after all, as the connection broke; the first of them may have been), decision, left, end (superseded), full
(the limit). A fast line is a whole advance on the fast path: the vote o, the barrier with `size` members that let through, the compare_set
of the register from x to d with its reply r, the wake of the winner, the decision. The supervisor has a file of its own, with what it saw
of the processes, lines of the kind event.
"""

import json
import logging
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import CoxlessError
from .protocol import Decision, Operation, RankState
from .records import encode_members

logger = logging.getLogger(__name__)

LIMIT = 64 * 1024 * 1024
SUFFIX = ".jsonl"
now = time.monotonic_ns


class Recorder:
    """One file; may be written to from several threads."""

    def __init__(self, folder: Path, name: str, *, limit: int = LIMIT) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{name}.{os.getpid()}.{now()}{SUFFIX}"
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._lock = threading.Lock()
        self._left = limit
        self._lines = 0
        self._size = 0
        """Bytes in whole lines so far, and in the last one."""
        self._last = 0

    def write(self, kind: str, **fields: Any) -> None:
        """One line, unless the file is full."""
        self._put(json.dumps({"t": kind, **fields}, separators=(",", ":"))[1:])

    def _put(self, fields: str) -> None:
        """One line; `fields` is JSON text up to the end of the object."""
        with self._lock:
            if self._left <= 0:
                return
            line = b'{"n":%d,%s\n' % (self._lines, fields.encode())
            self._left -= len(line)
            if self._left <= 0:
                self._end("its limit is reached")
                return
            try:
                written = os.write(self._descriptor, line)
            except OSError as error:  # a full disk must not stop the training
                self._end(error.strerror or str(error))
                return
            if written < len(line):
                self._end("the disk is full")
                return
            self._lines += 1
            self._last = len(line)
            self._size += len(line)

    def _end(self, why: str) -> None:
        """The file ends here, and says so. Where the disk has no room for that, it takes the place of the last line."""
        logger.warning("nothing more is recorded to %s: %s", self.path, why)
        self._left = 0
        for kept, lines in ((self._size, self._lines), (self._size - self._last, self._lines - 1)):
            line = b'{"n":%d,"t":"full","b":%d}\n' % (lines, now())
            try:
                os.ftruncate(self._descriptor, kept)
                if os.write(self._descriptor, line) == len(line):
                    return
            except OSError:
                continue

    # --- what a rank does

    def start(self, state: RankState) -> None:
        """The process begins."""
        told = {"rank": state.rank, "world_size": state.world_size, "min_ranks": state.min_ranks, "nonce": state.nonce}
        self.write("start", **told, b=now())

    def vote(self, state: RankState) -> None:
        """A run of the generator begins, with this vote on the present iteration."""
        if state.is_member:
            self.write("vote", k=state.record.iteration, flag=state.flag)

    def operation(self, operation: Operation, reply: object, began: int) -> None:
        """An operation has its reply."""
        step, *arguments = operation
        self.write("op", s=step, o=type(operation).__name__, a=list(map(_plain, arguments)), r=reply, b=began, e=now())

    def broken(self, operation: Operation, began: int) -> None:
        """An operation may have taken effect or not."""
        step, *arguments = operation
        self.write("broken", s=step, o=type(operation).__name__, a=list(map(_plain, arguments)), b=began, e=now())

    def decision(self, decision: Decision) -> None:
        """A run of the generator has come to its end."""
        record, members, me = decision
        self.write("decision", record=str(record), members=encode_members(members), me=str(me))

    def fast(self, k: int, size: int, expected: str, desired: str, reply: str, began: int, *, spared: bool) -> None:
        """An advance from iteration k on the fast path has come to its end. spared: its winner woke nobody. Formatted by hand: these
        texts need no escapes."""
        wake = '"wake":"spared",' if spared else ""
        self._put(
            f'"t":"fast","k":{k},"size":{size},"x":"{expected}","d":"{desired}","r":"{reply}",{wake}"b":{began},"e":{now()}}}'
        )

    def forgot(self, doomed: Sequence[str], began: int) -> None:
        """These keys will not be deleted by this process; the first of them may have been."""
        self.write("forgot", a=list(doomed), b=began, e=now())

    def deletion(self, key: str, began: int) -> None:
        """A key was deleted, beside the training thread."""
        self.write("delete", a=[key], b=began, e=now())

    def error(self, error: CoxlessError) -> None:
        """The protocol has ended for this process."""
        self.write("end", what=type(error).__name__)

    def left(self) -> None:
        """The process leaves the crew."""
        self.write("left", b=now())

    # --- what its supervisor sees

    def event(self, kind: str, rank: int | None, **fields: object) -> None:
        """Something that a supervisor saw."""
        self.write("event", what=kind, rank=rank, **fields, b=now())


def _plain(argument: object) -> object:
    return argument if isinstance(argument, int | str) and not isinstance(argument, tuple) else str(argument)


def recorder_from_env(name: str, environment: Mapping[str, str] = os.environ) -> Recorder | None:
    """A recorder if COXLESS_TRACE names a folder. Raises CoxlessError when it cannot be written to."""
    folder = environment.get("COXLESS_TRACE")
    if not folder:
        return None
    limit = environment.get("COXLESS_TRACE_LIMIT", str(LIMIT))
    if re.fullmatch("[1-9][0-9]{0,17}", limit) is None:
        raise CoxlessError(f"COXLESS_TRACE_LIMIT={limit[:60]!r} is not a number of bytes")
    try:
        return Recorder(Path(folder), name, limit=int(limit))
    except (OSError, ValueError) as error:
        raise CoxlessError(f"cannot record to COXLESS_TRACE={folder}: {error}") from None
