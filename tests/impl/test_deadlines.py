"""Every public call that talks to the store ends within its own deadline and half a second more (docs/running.md, "How long a call may take"),
whatever the store does: it is stopped, it is dead, or something is at its port that accepts connections and never answers."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist

import coxless
from coxless import Crew, StoreUnreachableError
from coxless.server import StoreServer, start_server
from coxless.training import DataParallel

from .crews import QUICK, in_threads, patiently, stopped

pytestmark = [pytest.mark.processes, pytest.mark.usefixtures("loopback")]

TIMEOUT = 2.0
LOOK, LEAVE, CLEAN_UP, AT_ONCE = 3.0, 2.0, 1.0, 0.0
ALLOWED = 0.5
"""The rule: so much more than its own deadline."""
SLACK = 5.0
"""And so much for a busy machine. A call that has no deadline hangs until the store is back, which it is not."""


@contextmanager
def hung(server: StoreServer) -> Iterator[None]:
    stopped(server.pid)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


@contextmanager
def dead(server: StoreServer) -> Iterator[None]:
    server.kill()
    yield


@contextmanager
def mute(server: StoreServer) -> Iterator[None]:
    """Something else has the port now."""
    server.kill()
    accepted: list[socket.socket] = []

    def accept() -> None:
        with contextlib.suppress(OSError):  # shut down below
            while True:
                accepted.append(listener.accept()[0])

    with socket.create_server(("127.0.0.1", server.port), backlog=128) as listener:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)
            for connection in accepted:
                connection.close()


FAULTS: dict[str, Callable[[StoreServer], AbstractContextManager[None]]] = {"stopped": hung, "killed": dead, "mute": mute}


class Place(NamedTuple):
    """What a call is made with."""

    address: str
    store: dist.Store
    crew: Crew


class Call(NamedTuple):
    make: Callable[[Place], object]
    limit: float
    """Its own deadline (s)."""
    raises: bool = True
    """StoreUnreachableError; else it returns."""
    crew: str = "large"
    """Whose rank makes it: of the `large` one, in its first iteration; `alone` in its first iteration; or a `newcomer`, in none yet."""


def leave_by_error(crew: Crew) -> None:
    with contextlib.suppress(ZeroDivisionError), crew:
        raise ZeroDivisionError


model = torch.nn.Linear(1, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)  # the first one of a process takes a second


def train(crew: Crew) -> None:
    trainer = DataParallel(crew, model, optimizer, timeout=timedelta(seconds=TIMEOUT))
    for _ in trainer.steps(2):
        model(torch.ones(1, 1)).sum().backward()


SHORT = timedelta(seconds=TIMEOUT)
CALLS = {
    "connect": Call(lambda at: coxless.connect(at.address, timeout=SHORT), TIMEOUT),
    "join(address)": Call(lambda at: coxless.join(at.address, rank=0, world_size=1, timeout=SHORT), TIMEOUT),
    "join(store)": Call(lambda at: coxless.join(at.store, rank=0, world_size=1, timeout=SHORT), TIMEOUT),
    "join_from_env": Call(lambda at: coxless.join_from_env(rank=0, world_size=1, timeout=SHORT), TIMEOUT),
    "the first advance": Call(lambda at: at.crew.advance(), TIMEOUT, crew="newcomer"),
    "advance": Call(lambda at: at.crew.advance(), TIMEOUT),
    "advance after a failed step": Call(lambda at: at.crew.advance(False), TIMEOUT),
    "iterations": Call(lambda at: list(at.crew.iterations(until=2)), TIMEOUT),
    # Before the first step the word that the training is over is looked for.
    "DataParallel.steps": Call(lambda at: train(at.crew), LOOK + TIMEOUT + CLEAN_UP, crew="alone"),
    "get_global_iteration": Call(lambda at: at.crew.get_global_iteration(), LOOK),
    "get_active_ranks": Call(lambda at: at.crew.get_active_ranks_for_coordination(), LOOK),
    "published": Call(lambda at: at.crew.published("word"), LOOK),
    "trouble": Call(lambda at: at.crew.trouble(), LOOK, raises=False),
    "publish": Call(lambda at: at.crew.publish("word", "x"), AT_ONCE, raises=False),
    "send_heartbeat": Call(lambda at: at.crew.send_heartbeat(), AT_ONCE, raises=False),
    "vote": Call(lambda at: at.crew.vote(False), AT_ONCE, raises=False),
    "leave": Call(lambda at: at.crew.leave(), LEAVE, raises=False),
    "leave by an error": Call(lambda at: leave_by_error(at.crew), LEAVE, raises=False),
}


LARGE = [name for name, call in CALLS.items() if call.crew == "large"]


def crew_for(name: str, store: dist.Store) -> Crew:
    kind = CALLS[name].crew
    prefix, rank, size = (
        (kind, 0, 2 if kind == "newcomer" else 1) if kind != "large" else ("large", LARGE.index(name), len(LARGE))
    )
    options: dict[str, Any] = {**QUICK, "heartbeat_timeout": timedelta(minutes=1), "timeout": SHORT}
    crew = patiently(lambda: coxless.join(dist.PrefixStore(prefix, store), rank=rank, world_size=size, **options))
    if kind != "newcomer":
        patiently(crew.advance)
    return crew


Outcome = tuple[str, float, BaseException | None]
"""Of a call: its name, the seconds that it took, its error."""


def outcome(name: str, place: Place) -> Outcome:
    error: BaseException | None = None
    started = time.monotonic()
    try:
        CALLS[name].make(place)
    except coxless.CoxlessError as raised:
        error = raised
    return name, time.monotonic() - started, error


@pytest.mark.parametrize("fault", FAULTS)
def test_each_call_ends_by_its_own_deadline(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All calls at once, and each twice: the second finds a connection that is broken already."""
    names = list(CALLS)
    ready, struck, over = threading.Barrier(len(names) + 1), threading.Event(), threading.Barrier(len(names) + 1)

    with start_server() as server:
        monkeypatch.setenv("COXLESS_STORE", server.address)

        def strike() -> None:
            ready.wait(60)
            with FAULTS[fault](server):
                struck.set()
                over.wait(60)

        def body(index: int) -> list[Outcome]:
            if index == len(names):
                strike()
                return []
            store = coxless.connect(server.address)
            store.set_timeout(SHORT)  # that of clones, too
            place = Place(server.address, store, crew_for(names[index], store))
            ready.wait(60)
            assert struck.wait(60)
            outcomes = [outcome(names[index], place) for _ in range(2)]
            over.wait(60)
            place.crew.leave()
            return outcomes

        def until_no_attempt_is_left() -> None:
            """What still tries to connect goes on for a while: it is not to reach into another test."""
            for thread in threading.enumerate():
                if thread.name == "coxless-connect":
                    thread.join(30)

        outcomes: list[Outcome] = [one for both in in_threads(len(names) + 1, body) for one in both]
        until_no_attempt_is_left()

    wrong = []
    for name, took, error in outcomes:
        call = CALLS[name]
        if took > call.limit + ALLOWED + SLACK:
            wrong.append(f"{name} took {took:.1f} s where {call.limit + ALLOWED:g} s are allowed")
        if isinstance(error, StoreUnreachableError) != call.raises or (error is not None) != call.raises:
            wrong.append(f"{name} ended with {error!r}")
    assert not wrong
    assert len(outcomes) == 2 * len(CALLS)
