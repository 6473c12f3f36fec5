"""A replay in which each rank is a process of its own. The scheduler, here, releases its store operations one at a time over a pipe,
and a crash is SIGKILL at exactly that point: the process stands between two operations and hears nothing any more.

No process outlives the scheduler, however that ends: its end closes the pipes, and a rank's process that finds its pipe closed ends.
"""

import multiprocessing
import signal
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection as Pipe
from typing import Any

from coxless.connection import Connection
from coxless.errors import CoxlessError
from coxless.protocol import Operation, RankState
from coxless.records import Flag
from coxless.store import connect

from .replay import NewReplica, Replica
from .targets import Line, Target, Wire

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["coxless_traces.processes"])  # importing torch takes seconds; nobody has a client by then
ANSWER_LIMIT = 60.0
"""Seconds."""


class RankProcessError(CoxlessError):
    """The process of a rank does not answer to the scheduler: it has ended by itself, or it hangs. Nothing is known of the replay."""


def _start_fork_server() -> None:
    """Ctrl-C goes to all processes of a terminal. That it ends a replay is the scheduler's business alone: the server of forks, and what it
    forks, are started with the signal blocked, so it cannot come in before they have a handler."""
    resource_tracker.ensure_running()  # unblocks the signal when it starts, so it has to be there before
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Here:
    """In the rank's process: the store is an address."""

    name = "tcp"

    def __init__(self, address: str) -> None:
        self._store = connect(address)

    def open(self) -> Line:
        return Wire(Connection(self._store))

    def contents(self) -> dict[str, str]:
        raise AssertionError("only the scheduler looks at the whole store")

    def clear(self) -> None:
        raise AssertionError("only the scheduler clears the store")


def serve(pipe: Pipe, address: str, rank: int, world_size: int, min_ranks: int) -> None:
    """What the rank's process does: what it is told, and nothing between two messages."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    state = RankState(rank, world_size, min_ranks, nonce="", generation="")
    failed: CoxlessError | None = None
    try:
        here = _Here(address)
        replica = Replica(state, here.open())
    except CoxlessError as error:
        failed = error  # told in answer to the first message; if the replay was interrupted before it had a hold of this process, to nobody
    while True:
        try:
            what, argument, drawn = pipe.recv()
        except (EOFError, ConnectionError):
            return
        answer: object = failed
        if failed is None:
            if drawn is not None:
                state.nonce, state.generation, state.deletions, replica.join_timeout = drawn
            try:
                reply = _obey(replica, here, what, argument)
                answer = (reply, state, replica.operation, replica.generator is not None, replica.stopped)
            except CoxlessError as error:
                answer = error
        try:
            pipe.send(answer)
        except ConnectionError:
            return


def _obey(replica: Replica, here: _Here, what: str, argument: Any) -> object:
    """The reply of the store, if this was an operation."""
    match what:
        case "perform":
            return replica.line.perform(argument)
        case "enter":
            replica.enter()
        case "advance":
            replica.advance(argument)
        case "resume":
            replica.resume(argument)
        case "break":
            replica.break_connection(here)
    return None


class RemoteReplica(Replica):
    """The scheduler's end. `state` is a copy of what the process knows, as of its last answer."""

    __slots__ = ("_pipe", "process")

    def __init__(self, state: RankState, address: str) -> None:
        super().__init__(state, _RemoteLine(self))
        _start_fork_server()
        self._pipe, theirs = _context.Pipe()
        self.process = _context.Process(
            target=serve, args=(theirs, address, state.rank, state.world_size, state.min_ranks), daemon=True
        )
        self.process.start()
        theirs.close()

    def tell(self, what: str, argument: object = None) -> object:
        state = self.state
        rank = state.rank
        try:
            self._pipe.send((what, argument, (state.nonce, state.generation, state.deletions, self.join_timeout)))
            if not self._pipe.poll(ANSWER_LIMIT):
                raise RankProcessError(f"the process of rank {rank} has not answered to {what!r} within {ANSWER_LIMIT:.0f} s")
            answer: Any = self._pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            code = self.process.exitcode
            raise RankProcessError(f"the process of rank {rank} ended by itself, before {what!r} (exit code {code})") from None
        if isinstance(answer, CoxlessError):
            raise answer
        reply, self.state, self.operation, runs, self.stopped = answer
        self.generator = RUNNING if runs else None
        return reply

    def enter(self) -> None:
        self.tell("enter")

    def advance(self, flag: Flag) -> None:
        self.tell("advance", flag)

    def resume(self, reply: object) -> None:
        self.tell("resume", reply)

    def break_connection(self, target: Target) -> None:
        self.tell("break")

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self._pipe.close()


def _running() -> Any:
    yield


RUNNING = _running()
"""Stands for the generator that runs in the other process."""


class _RemoteLine:
    def __init__(self, replica: RemoteReplica) -> None:
        self._replica = replica

    def perform(self, operation: Operation) -> object:
        return self._replica.tell("perform", operation)

    def close(self) -> None:
        pass


def in_processes(address: str) -> NewReplica:
    """To be given to Lockstep: each process of the model is a process of the host, connected to the store at this address."""
    return lambda state, target: RemoteReplica(state, address)


__all__ = ["RankProcessError", "RemoteReplica", "in_processes", "serve"]
