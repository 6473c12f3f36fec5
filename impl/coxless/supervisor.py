"""Starts the ranks, one process each, starts again those that die, and tells the others at once who died.

It takes no part in the protocol. Should it be killed itself (SIGKILL), its ranks and its store die with it (Linux), but nobody is left
to end what the ranks have started in turn, and to remove the run's temporary folder.
"""

import logging
import os
import shutil
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from .address import parse
from .dead_marks import DeadMarker, mark_dead
from .errors import CoxlessError
from .events import Event, Exited, Kind, RestartPolicy, backoff, never
from .output import Forwarder, OnLine, print_line
from .rank_process import RankProcess, rank_environment
from .recording import Recorder, recorder_from_env
from .server import StoreServer
from .store import connect
from .stores import let_go

__all__ = ["INTERRUPTED", "Event", "Exited", "Kind", "RestartPolicy", "Supervisor", "backoff", "mark_dead", "never"]

logger = logging.getLogger(__name__)

ALL_ENDED_WELL = 0
SOME_RANK_FAILED = 1
INTERRUPTED = 130
TERMINATED = 143

_TICK = 0.02
_STORE_RETRY = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)


class _Rank:
    """Where one rank stands: it runs, or waits for its restart, or has come to its end."""

    def __init__(self) -> None:
        self.process: RankProcess | None = None
        self.restarts = 0
        self.restart_at: float | None = None
        self.ended: Kind | None = None


class Supervisor:
    """A run of `command` as ranks first_rank … first_rank + ranks - 1, each in a process of its own.

    Use `run()`, or `start()` and then `poll()` until it is True, and `stop()`; or a `with` block, which starts and stops. start(), poll() and
    run() belong to one thread, with whose end the ranks die too (Linux); `pid`, `kill` and `request_stop` may be called from any, and from `on_event`.

    command: what to execute, for example [sys.executable, "train.py"].
    store: the address of a running store ("host:port", "etcd://…", "file://…"); None starts one at `host`:`port`, and starts it again whenever it dies.
    restart: decides for each process that failed whether and after what delay the rank is started again.
    on_event: called with each Event; marked_dead and the store's come from other threads.
    on_line: called with each line that a rank prints; the default prints it with a prefix.
    grace: how long the ranks have between SIGTERM and SIGKILL when the run is stopped.

    Raises ValueError for numbers that make no sense.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        ranks: int,
        first_rank: int = 0,
        world_size: int | None = None,
        store: str | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        restart: RestartPolicy | None = None,
        max_restarts: int = 3,
        on_event: Callable[[Event], None] | None = None,
        on_line: OnLine = print_line,
        environment: Mapping[str, str] | None = None,
        grace: timedelta = timedelta(seconds=10),
        run_id: str | None = None,
    ) -> None:
        if not command:
            raise ValueError("command is empty: give a program to run, such as [sys.executable, 'train.py']")
        if ranks < 1:
            raise ValueError(f"ranks is {ranks}: at least one is needed")
        if first_rank < 0:
            raise ValueError(f"first_rank is {first_rank}: ranks count from 0")
        if max_restarts < 0:
            raise ValueError(f"max_restarts is {max_restarts}: 0 means never")
        if store is not None:
            parse(store)
        self.world_size = world_size if world_size is not None else first_rank + ranks
        if self.world_size < first_rank + ranks:
            raise ValueError(
                f"world_size is {self.world_size}: ranks {first_rank} to {first_rank + ranks - 1} need at least {first_rank + ranks}"
            )
        self.command = list(command)
        self.exit_code: int | None = None
        self._max_restarts = max_restarts
        self._restart = restart or backoff(max_restarts)
        self._on_event = on_event
        self._on_line = on_line
        self._environment = dict(environment or {})
        self._grace = grace
        self._run_id = run_id or uuid.uuid4().hex[:8]
        self._given_store = store
        self._serve_at = (host, port)
        self._first_rank = first_rank
        self._ranks = {rank: _Rank() for rank in range(first_rank, first_rank + ranks)}
        self._folder: Path | None = None
        self._server: StoreServer | None = None
        self._reviver: threading.Thread | None = None
        self._store_lost = False
        self._marker: DeadMarker | None = None
        self._forwarder: Forwarder | None = None
        self._recorder: Recorder | None = None
        self._stop_code: int | None = None
        self._closing = threading.Event()
        self._telling = threading.RLock()  # a listener may do what is told in turn

    # -- the life of a run

    def start(self) -> None:
        """Start the store, unless one was given, and every rank.

        Raises CoxlessError when the store cannot be started or reached or COXLESS_TRACE cannot be written to, OSError when the command cannot be
        executed; nothing is left running then.
        """
        try:
            # Where the ranks record, so does the supervisor: it alone sees when a process has ended.
            self._recorder = recorder_from_env("supervisor", {**os.environ, **self._environment})
            if self._given_store is None:
                self._server = StoreServer(*self._serve_at)
                self._server.start()
                self._tell(Kind.STORE_STARTED, pid=self._server.pid, detail=self._server.address)
            else:
                let_go(connect(self._given_store))  # one clear error here instead of one from each rank
            self._forwarder = Forwarder(self._on_line)
            self._folder = Path(tempfile.mkdtemp(prefix="coxless-run-"))
            for rank in self._ranks:
                self._launch(rank)
            self._marker = DeadMarker(self.store_address, self._marked)
        except BaseException:
            self.stop(grace=timedelta(0))
            raise

    def poll(self) -> bool:
        """Look once at every process and do what is due; whether the run is over. Never blocks."""
        self._look_after_the_store()
        now = time.monotonic()
        for rank, state in self._ranks.items():
            if state.process is not None:
                self._look_after(rank, state, state.process)
            elif state.restart_at is not None and now >= state.restart_at:
                state.restart_at = None
                state.restarts += 1
                try:
                    self._launch(rank)
                except OSError as error:  # out of processes or memory, or the program is gone
                    self._failed(rank, state, Exited(rank, state.restarts, None, None, timedelta(0)), str(error))
        return self._store_lost or all(state.ended is not None for state in self._ranks.values())

    def run(self, *, handle_signals: bool = False) -> int:
        """The whole run, from start to stop. Returns the exit code:

        0 every rank ended with 0; 1 a rank failed for good (the others went on without it), or the store was lost;
        130 stopped by SIGINT; 143 stopped by SIGTERM.

        handle_signals: SIGINT and SIGTERM stop the run (main thread only); a second one kills the ranks at once.
        """
        before = self._handle_signals() if handle_signals else {}
        try:
            self.start()
            while self._stop_code is None and not self.poll():
                time.sleep(_TICK)
        finally:
            self.stop()
            for number, handler in before.items():
                signal.signal(number, handler)
        assert self.exit_code is not None
        return self.exit_code

    def request_stop(self, code: int = TERMINATED) -> None:
        """Have `run` stop the ranks and return `code`; from any thread or signal handler. The second time: without grace."""
        if self._stop_code is not None:
            self._grace = timedelta(0)
        self._stop_code = code

    def stop(self, *, grace: timedelta | None = None) -> None:
        """End every process: SIGTERM to the group of each rank, SIGKILL after the grace period. Then the store. May be repeated."""
        if self._closing.is_set():
            return
        if grace is not None:
            self._grace = grace
        running = [(rank, state.process) for rank, state in self._ranks.items() if state.process is not None]
        if running:
            self._tell(Kind.STOPPING)
        for _, process in running:
            process.signal(signal.SIGTERM, group=True)
            process.signal(signal.SIGCONT, group=True)  # a stopped process would not see it
        try:
            self._wait_for_the_end(running)
        except BaseException:  # Ctrl-C again
            self._grace = timedelta(0)
            self._wait_for_the_end(running)
            raise
        finally:
            self._closing.set()
            self._close()
        if self.exit_code is None:
            well = not self._store_lost and all(state.ended is Kind.FINISHED for state in self._ranks.values())
            ended = ALL_ENDED_WELL if well else SOME_RANK_FAILED
            self.exit_code = ended if self._stop_code is None else self._stop_code

    def _wait_for_the_end(self, running: list[tuple[int, RankProcess]]) -> None:
        since = time.monotonic()
        while running:
            running = [(rank, process) for rank, process in running if not self._gather(rank, process)]
            if time.monotonic() - since >= self._grace.total_seconds():  # read each time: a second Ctrl-C makes it 0
                for _, process in running:
                    process.signal(signal.SIGKILL, group=True)
            time.sleep(_TICK)

    def _close(self) -> None:
        if self._marker is not None:
            # With our own store there is nobody left to read the marks; but the one that is being written must not lose its server.
            self._marker.close(patience=2.0, write=self._server is None)
        if self._server is not None:
            while self._reviver is not None and self._reviver.is_alive():
                self._server.abort_start()
                self._reviver.join(0.1)
            self._server.close()
        if self._forwarder is not None:
            self._forwarder.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    # -- for whoever drives it

    @property
    def store_address(self) -> str:
        """Where the store is, as "host:port" or as it was given, with the password if one was given."""
        if self._given_store is not None:
            return self._given_store.removeprefix("tcp://")
        if self._server is None:
            raise RuntimeError("the run has not been started")
        return self._server.address

    @property
    def store_pid(self) -> int | None:
        """Process id of our own store server."""
        return None if self._server is None else self._server.pid

    def pid(self, rank: int) -> int | None:
        """Process id of the rank, None while it has no process. Raises ValueError for a rank that is not one of this run."""
        process = self._known(rank).process
        return None if process is None else process.pid

    def running(self) -> tuple[int, ...]:
        """The ranks that have a process now."""
        return tuple(rank for rank, state in self._ranks.items() if state.process is not None)

    def kill(self, rank: int, number: int = signal.SIGKILL) -> bool:
        """Send the rank's process a signal; False if it has none. Raises ValueError for a rank that is not one of this run."""
        process = self._known(rank).process
        return process is not None and process.signal(number)

    def _known(self, rank: int) -> _Rank:
        if rank not in self._ranks:
            raise ValueError(f"rank {rank} is not one of this run: it has {min(self._ranks)} to {max(self._ranks)}")
        return self._ranks[rank]

    # -- the ranks

    def _launch(self, rank: int) -> None:
        assert self._forwarder is not None and self._folder is not None
        state = self._ranks[rank]
        environment = rank_environment(
            rank=rank,
            local_rank=rank - self._first_rank,
            ranks=len(self._ranks),
            world_size=self.world_size,
            restarts=state.restarts,
            max_restarts=self._max_restarts,
            store=self.store_address,
            run_id=self._run_id,
        )
        if len(self._ranks) > 1 and "OMP_NUM_THREADS" not in os.environ:
            environment["OMP_NUM_THREADS"] = "1"  # as torchrun does: else every rank takes all the cores
        state.process = RankProcess(rank, self.command, {**environment, **self._environment}, self._forwarder, self._folder)
        self._tell(Kind.RESTARTED if state.restarts else Kind.STARTED, rank, pid=state.process.pid)

    def _look_after(self, rank: int, state: _Rank, process: RankProcess) -> None:
        if not self._gather(rank, process):
            return
        code, number = _ending(process)
        if code == 0:
            state.ended = Kind.FINISHED
            self._tell(Kind.FINISHED, rank, pid=process.pid)
        else:
            ran = timedelta(seconds=time.monotonic() - process.started)
            self._failed(rank, state, Exited(rank, state.restarts, code, number, ran))

    def _gather(self, rank: int, process: RankProcess) -> bool:
        """Whether the process has ended; the first time that it has, its members are marked and the event is told.

        However it has ended: one that ended well and did not leave the crew is gone all the same.
        """
        if process.poll() is None:
            return False
        if self._ranks[rank].process is not process:
            return True
        self._ranks[rank].process = None
        code, number = _ending(process)
        self._tell(Kind.EXITED, rank, pid=process.pid, code=code, signal=number)
        if self._marker is not None:
            self._marker.mark(rank, process.tokens())
        process.forget()
        return True

    def _failed(self, rank: int, state: _Rank, exited: Exited, detail: str = "") -> None:
        delay = self._restart(exited)
        if delay is None:
            state.ended = Kind.GAVE_UP
            self._tell(Kind.GAVE_UP, rank, code=exited.code, signal=exited.signal, detail=detail)
        else:
            state.restart_at = time.monotonic() + delay.total_seconds()

    def _marked(self, rank: int, tokens: tuple[str, ...]) -> None:
        self._tell(Kind.MARKED_DEAD, rank, detail=", ".join(tokens))

    # -- the store

    def _look_after_the_store(self) -> None:
        server = self._server
        if server is None or server.running or self._store_lost or (self._reviver is not None and self._reviver.is_alive()):
            return
        self._tell(Kind.STORE_DIED, pid=server.pid)
        # Starting it takes seconds, in which ranks may die too: not in this thread.
        self._reviver = threading.Thread(target=self._revive, args=(server,), name="coxless-store", daemon=True)
        self._reviver.start()

    def _revive(self, server: StoreServer) -> None:
        reason = ""
        for pause in _STORE_RETRY:
            if self._closing.wait(pause):
                return
            try:
                server.start()
            except (CoxlessError, OSError) as error:
                reason = str(error)
            else:
                self._tell(Kind.STORE_RESTARTED, pid=server.pid, detail=server.address)
                return
        self._tell(Kind.STORE_LOST, detail=reason)
        self._store_lost = True

    # -- the rest

    def _handle_signals(self) -> dict[int, signal.Handlers | int | Callable[..., object] | None]:
        codes = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}
        return {
            int(number): signal.signal(number, lambda received, _: self.request_stop(codes[signal.Signals(received)]))
            for number in codes
        }

    def _tell(
        self,
        kind: Kind,
        rank: int | None = None,
        *,
        pid: int | None = None,
        code: int | None = None,
        signal: int | None = None,
        detail: str = "",
    ) -> None:
        restarts = 0 if rank is None else self._ranks[rank].restarts
        event = Event(kind, time.monotonic(), rank, pid, restarts, code, signal, detail)
        logger.debug("%s", event)
        if self._recorder is not None:
            self._recorder.event(str(kind), rank, pid=pid, restarts=restarts, code=code, signal=signal, detail=detail)
        if self._on_event is not None:
            try:
                with self._telling:
                    self._on_event(event)
            except Exception:  # a faulty listener must not leave ranks behind without a supervisor
                logger.exception("the on_event callback failed at %r", event)


def _ending(process: RankProcess) -> tuple[int | None, int | None]:
    assert process.returncode is not None
    return (process.returncode, None) if process.returncode >= 0 else (None, -process.returncode)
