"""For the tests of the training layer: a crew that is a stand-in and decides in memory, whose ranks are threads; and something to train."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

import coxless
from coxless.training import Background, DataParallel, EpochGroup, Step, batch_at, open_group, shard

TIMEOUT = timedelta(seconds=20)
seeding = threading.Lock()  # the ranks are threads, and torch's default generator is one for all


class Member(NamedTuple):
    rank: int
    number: int
    nonce: str


@dataclass(frozen=True)
class Iteration:
    number: int
    epoch: str
    participants: tuple[Member, ...]
    index: int
    holders: tuple[bool, ...]
    committed: bool
    rejoined: bool


@dataclass
class Harbour:
    """Decides for all crews in one process: an iteration ends when every living member has voted."""

    store: Any
    size: int
    lock: threading.Condition = field(default_factory=threading.Condition)
    number: int = 0
    epochs: int = 0
    epoch: str = ""
    members: list[Member] = field(default_factory=list)
    votes: dict[Member, tuple[bool, bool]] = field(default_factory=dict)
    joining: list[Member] = field(default_factory=list)
    dead: set[Member] = field(default_factory=set)
    outcome: dict[int, tuple[str, list[Member], dict[Member, bool], bool]] = field(default_factory=dict)
    published: dict[str, str] = field(default_factory=dict)

    def settle(self) -> None:
        alive = [member for member in self.members if member not in self.dead]
        if any(member not in self.votes for member in alive) or (self.number == 0 and len(self.joining) < self.size):
            return
        if not alive and len(self.joining) < min(2, self.size):
            return
        steady = not self.joining and alive == self.members and all(ok for ok, _ in self.votes.values())
        committed = bool(alive) and all(self.votes[member][0] for member in alive)
        holds = {member: self.votes[member][1] for member in alive} | dict.fromkeys(self.joining, False)
        if not steady:
            self.epochs += 1
            self.epoch = f"epoch{self.epochs}"
        self.members = sorted(holds)
        self.number += 1
        self.votes, self.joining = {}, []
        self.outcome[self.number] = (self.epoch, list(self.members), holds, committed)
        self.lock.notify_all()

    def kill(self, member: Member) -> None:
        with self.lock:
            self.dead.add(member)
            self.settle()


class Crew:
    def __init__(self, harbour: Harbour, rank: int, number: int = 1) -> None:
        self.harbour = harbour
        self.store = harbour.store.clone()
        self.member = Member(rank, number, "x")
        with harbour.lock:
            harbour.joining.append(self.member)
            harbour.lock.notify_all()
            before = harbour.number
            harbour.settle()
        self.iteration = self._await(before, rejoined=True)

    def _await(self, number: int, rejoined: bool) -> Iteration:
        harbour = self.harbour
        with harbour.lock:
            assert harbour.lock.wait_for(lambda: any(n > number and self.member in o[1] for n, o in harbour.outcome.items()), 30)
            number = min(n for n, o in harbour.outcome.items() if n > number and self.member in o[1])
            epoch, members, holds, committed = harbour.outcome[number]
        index = members.index(self.member)
        return Iteration(number, epoch, tuple(members), index, tuple(holds[m] for m in members), committed, rejoined)

    def advance(self, ok: bool = True, holds: bool | None = None) -> Iteration:
        with self.harbour.lock:
            self.harbour.votes[self.member] = (ok, bool(holds))
            self.harbour.settle()
        self.iteration = self._await(self.iteration.number, rejoined=False)
        return self.iteration

    def trouble(self) -> str | None:
        harbour = self.harbour
        with harbour.lock:
            gone = [member for member in self.iteration.participants if member in harbour.dead]
            if gone:
                return f"{gone[0]} is dead"
            failed = [member for member, (ok, _) in harbour.votes.items() if not ok]
            return f"{failed[0]} voted failed" if failed else None

    def publish(self, name: str, value: str) -> None:
        self.harbour.published[name] = value

    def published(self, name: str) -> str | None:
        return self.harbour.published.get(name)


class Killed(BaseException):
    """Ends a rank of a test where it stands."""


def together(bodies: list[Callable[[], object]], timeout: float = 60) -> list[Any]:
    """Runs each body on a thread of its own; returns what they returned, or the error that they raised."""
    results: list[Any] = [None] * len(bodies)

    def run(number: int) -> None:
        try:
            results[number] = bodies[number]()
        except BaseException as error:  # noqa: BLE001
            results[number] = error.with_traceback(None)

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(len(bodies))]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
        assert not thread.is_alive(), "a rank hangs"
    return results


def with_groups(store: Any, size: int, body: Callable[[EpochGroup], object], **options: Any) -> list[Any]:
    def rank(index: int) -> object:
        settings: dict[str, Any] = {"watch": lambda: None, "background": Background(), "timeout": TIMEOUT} | options
        return body(open_group(store, "e", index, size, **settings))

    return together([partial(rank, index) for index in range(size)])


def digest(model: nn.Module) -> str:
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.state_dict().values())).hexdigest()


SAMPLES, BATCH = 40, 12
torch.manual_seed(5)
X, Y = torch.randn(SAMPLES, 6), torch.randn(SAMPLES, 2)


def build(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    with seeding:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    return model, torch.optim.Adam(model.parameters(), lr=1e-2)


def loss_of(model: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    return nn.functional.mse_loss(model(X[rows]), Y[rows])


@dataclass
class Run:
    trainer: DataParallel
    history: list[tuple[int, int, int]] = field(default_factory=list)  # position, participants, iteration, as committed


def train(harbour: Harbour, rank: int, total: int, *, number: int = 1, at: Callable[[str, Any, Crew], None] | None = None) -> Run:
    crew = Crew(harbour, rank, number)
    model, optimizer = build(seed=100 * number + rank)  # all different: the state has to come from one of them
    sizes: dict[int, tuple[int, int]] = {}

    def observe(name: str, iteration: Any, details: Any) -> None:
        if name == "applied":
            run.history.append((details["position"] - 1, *sizes[iteration.number - 1]))
        if at is not None:
            at(name, iteration, crew)

    trainer = DataParallel(crew, model, optimizer, timeout=TIMEOUT, bucket_bytes=128, observer=observe)
    run = Run(trainer)
    for step in trainer.steps(total):
        sizes[step.iteration.number] = (step.size, step.iteration.number)
        loss_of(model, step.shard(batch_at(step.position, samples=SAMPLES, batch_size=BATCH))).backward()
    return run


def alone(history: list[tuple[int, int, int]], seed: int) -> nn.Module:
    """One process over the same committed positions and numbers of participants."""
    model, optimizer = build(seed)
    for position, size, _ in history:
        optimizer.zero_grad()
        batch = batch_at(position, samples=SAMPLES, batch_size=BATCH)
        for index in range(size):
            rows = shard(batch, index, size)
            (loss_of(model, rows) * len(rows) / len(batch)).backward()
        optimizer.step()
    return model


def assert_same_weights(runs: list[Run], total: int, seed: int) -> None:
    assert len({digest(run.trainer.model) for run in runs}) == 1
    longest = max((run.history for run in runs), key=len)
    assert [position for position, *_ in longest] == list(range(total))
    for mine, reference in zip(runs[0].trainer.model.parameters(), alone(longest, seed).parameters(), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-5)


@dataclass
class Rank:
    """One rank of a real crew, whose trainer notes each update that is made."""

    crew: coxless.Crew
    model: nn.Module = field(init=False)
    options: dict[str, Any] = field(default_factory=dict)
    trainer: DataParallel = field(init=False)
    applied: list[tuple[int, int, int]] = field(default_factory=list)
    at: Callable[[str, Any, Rank], None] = lambda name, iteration, rank: None

    def __post_init__(self) -> None:
        self.model, self.optimizer = build(seed=self.crew.rank)
        self.trainer = DataParallel(self.crew, self.model, self.optimizer, observer=self.observe, **self.options)

    def observe(self, name: str, iteration: Any, details: Any) -> None:
        if name == "applied":
            self.applied.append((details["position"] - 1, self.size, iteration.number - 1))
        self.at(name, iteration, self)

    def train(self, total: int, *, stop_before: int | None = None) -> None:
        for step in self.trainer.steps(total):
            if step.position == stop_before:
                return
            self.learn(step)

    def learn(self, step: Step) -> None:
        self.size = step.size
        loss_of(self.model, step.shard(batch_at(step.position, samples=SAMPLES, batch_size=BATCH))).backward()

    def check(self, total: int) -> str:
        assert [position for position, *_ in self.applied] == list(range(total))
        return digest(self.model)


def same_as_alone(ranks: list[Rank], total: int) -> None:
    """The weights are those of one process that makes the same updates. (Rank 0 gives the first state.)"""
    assert len({rank.check(total) for rank in ranks}) == 1
    for mine, reference in zip(ranks[0].model.parameters(), alone(ranks[0].applied, seed=0).parameters(), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-5)
