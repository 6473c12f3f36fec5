"""The training layer on real Gloo groups over a real TCPStore. The crew is a stand-in that decides in memory; a thread is a rank."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import nn

from coxless.training import (
    Background,
    CollectiveFailed,
    CrewFinished,
    DataParallel,
    EpochGroup,
    Step,
    average_gradients,
    batch_at,
    broadcast_state,
    generator,
    open_group,
    pack,
    shard,
    unpack,
)

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
    expected: int = 0  # founders that have to come

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


class Killed(BaseException):
    """Ends a rank of a test where it stands."""


@pytest.fixture(autouse=True)
def _loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)


@pytest.fixture
def store() -> Any:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    return dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())


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
        settings = {"watch": lambda: None, "background": Background(), "timeout": TIMEOUT} | options
        return body(open_group(store, "e", index, size, **settings))

    return together([lambda index=index: rank(index) for index in range(size)])


def digest(model: nn.Module) -> str:
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.state_dict().values())).hexdigest()


# --- sharding ---------------------------------------------------------------------------------------------------------------


def test_every_pass_uses_every_sample_once() -> None:
    stream = torch.cat([batch_at(position, samples=10, batch_size=7, seed=3) for position in range(30)])
    for start in range(0, 210, 10):
        assert sorted(stream[start : start + 10].tolist()) == list(range(10))
    assert batch_at(0, samples=3, batch_size=10).numel() == 10


def test_shards_make_up_the_batch() -> None:
    batch = torch.arange(7)
    for size in range(1, 10):
        parts = [shard(batch, index, size) for index in range(size)]
        assert torch.equal(torch.cat(parts), batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    with pytest.raises(ValueError, match=r"0\.\.2"):
        shard(batch, 3, 3)


def test_generator_depends_only_on_its_arguments() -> None:
    assert torch.equal(torch.rand(3, generator=generator(1, 2, 0)), torch.rand(3, generator=generator(1, 2, 0)))
    assert not torch.equal(torch.rand(3, generator=generator(1, 2, 0)), torch.rand(3, generator=generator(1, 20)))


# --- state as plain numbers -------------------------------------------------------------------------------------------------


def test_state_survives_packing() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.8, 0.99))
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    tree = {
        "o": optimizer.state_dict(),
        "m": model.state_dict(),
        "n": [None, True, 0.1, "é"],
        "e": torch.empty(0),
        "b": torch.tensor(True),
    }
    again = unpack(*pack(tree))
    assert again["o"]["param_groups"] == tree["o"]["param_groups"]
    assert again["o"]["state"].keys() == tree["o"]["state"].keys()
    assert again["n"] == tree["n"]
    torch.optim.AdamW(model.parameters()).load_state_dict(again["o"])


def test_foreign_things_are_refused() -> None:
    with pytest.raises(TypeError, match="Linear cannot be sent"):
        pack({"model": nn.Linear(1, 1)})
    with pytest.raises(ValueError, match="not the shape"):
        unpack('{"reduce": []}', [])
    with pytest.raises(ValueError, match="more tensors"):
        unpack('{"tensor": ["float32", 1]}', [])


def test_state_arrives_bit_identical(store: Any) -> None:
    tree = {
        "half": torch.randn(5).half(),
        "strided": torch.randn(4, 6).T,
        "empty": torch.empty(0, 3),
        "one": torch.tensor(7),
        "n": (1, 2.5),
    }
    received = with_groups(store, 3, lambda group: broadcast_state(group, tree if group.index == 1 else None, 1))
    for state in received:
        assert state["n"] == (1, 2.5)
        for name in ("half", "strided", "empty", "one"):
            assert torch.equal(state[name], tree[name])
            assert state[name].dtype == tree[name].dtype


# --- averaging --------------------------------------------------------------------------------------------------------------


def test_average_is_the_gradient_of_the_whole_batch(store: Any) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(10, 4), torch.randn(10, 3)

    def gradients(index: int, size: int, group: EpochGroup | None) -> list[torch.Tensor | None]:
        with seeding:
            torch.manual_seed(1)
            model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
            unused = nn.Linear(2, 2)
        rows = shard(torch.arange(10), index, size)
        nn.functional.mse_loss(model(x[rows]), y[rows]).backward()
        parameters = [*model.parameters(), *unused.parameters()]
        if group is not None:
            average_gradients(group, parameters, len(rows), bucket_bytes=64)
        return [parameter.grad for parameter in parameters]

    whole = gradients(0, 1, None)
    results = with_groups(store, 4, lambda group: gradients(group.index, 4, group))
    for result in results:
        for got, first, want in zip(result, results[0], whole, strict=True):
            if want is None:
                assert got is None
            else:
                assert torch.equal(got, first)
                torch.testing.assert_close(got, want)


def test_an_empty_shard_counts_for_nothing(store: Any) -> None:
    def body(group: EpochGroup) -> torch.Tensor | None:
        parameter = nn.Parameter(torch.zeros(3))
        empty = group.index == 1
        parameter.grad = torch.full((3,), float("nan") if empty else 4.0)
        average_gradients(group, [parameter], 0 if empty else 5)
        return parameter.grad

    for gradient in with_groups(store, 2, body):
        assert torch.equal(gradient, torch.full((3,), 4.0))


def test_weights_are_checked(store: Any) -> None:
    def body(group: EpochGroup) -> None:
        average_gradients(group, [nn.Parameter(torch.zeros(1))], 0)

    assert all("all weights are 0" in str(error) for error in with_groups(store, 2, body))
    lone = EpochGroup(None, 0, 1, watch=lambda: None, background=Background())
    with pytest.raises(ValueError, match="finite"):
        average_gradients(lone, [nn.Parameter(torch.zeros(1))], float("nan"))


# --- groups -----------------------------------------------------------------------------------------------------------------


def test_a_missing_participant_does_not_hold_up_the_meeting(store: Any) -> None:
    started = time.monotonic()
    with pytest.raises(CollectiveFailed, match="rank 1 is dead"):
        open_group(store, "e", 0, 2, watch=lambda: "rank 1 is dead", background=Background(), timeout=timedelta(seconds=3))
    assert time.monotonic() - started < 1


def test_a_pending_collective_is_given_up_and_parked(store: Any) -> None:
    parked = Background()
    gone = threading.Event()

    def body(group: EpochGroup) -> float:
        if group.index == 2:
            gone.wait(10)  # alive, but never comes: no socket is ever closed
            return 0
        started = time.monotonic()
        with pytest.raises(CollectiveFailed, match="the others gave up"):
            group.all_reduce(torch.ones(1000))
        assert group.closed
        return time.monotonic() - started

    began = time.monotonic()
    options = {"background": parked, "timeout": timedelta(seconds=3)}
    watch = lambda: "the others gave up" if time.monotonic() - began > 0.3 else None  # noqa: E731
    threading.Timer(2, gone.set).start()
    times = with_groups(store, 3, body, watch=watch, **options)
    assert max(times) < 1.5
    assert parked.settle(10), "the pending work must end with the timeout of its group"


def test_the_process_ends_quickly_with_work_pending(store: Any) -> None:
    """Parked work must not hold up, or crash, the end of the process."""
    program = f"""
import time, torch, threading, torch.distributed as dist
from datetime import timedelta
from coxless.training import *
store = dist.TCPStore("127.0.0.1", {store.port}, is_master=False)
groups = {{}}
make = lambda index: groups.update({{index: open_group(store, "e", index, 2, watch=lambda: None, background=Background())}})
thread = threading.Thread(target=make, args=(0,)); thread.start(); make(1); thread.join()
groups[0]._watch = lambda: "enough"
try:
    groups[0].all_reduce(torch.ones(10))
except CollectiveFailed as error:
    print(error, flush=True)
"""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program], env=dict(os.environ), capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "enough\n"), done.stderr
    assert time.monotonic() - started < 25


# --- the trainer ------------------------------------------------------------------------------------------------------------

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


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_crew_trains_like_one_process(store: Any, size: int) -> None:
    harbour = Harbour(store, size)
    runs = together([lambda rank=rank: train(harbour, rank, 12) for rank in range(size)])
    assert_same_weights(runs, 12, seed=100)
    # Founding, and one iteration for each update.
    assert harbour.number == 13
    assert [key for key in store.list_keys() if "epoch" in key] == []


@pytest.mark.parametrize("bucket", [0, 1])
def test_a_step_whose_collective_fails_is_tried_again(store: Any, bucket: int) -> None:
    harbour = Harbour(store, 4)

    def die(name: str, iteration: Any, crew: Crew) -> None:
        if name == "bucket" and iteration.number == 5 and next(count) == bucket:
            harbour.kill(crew.member)
            raise Killed

    count = iter(range(100))
    failed: list[int] = []
    note = lambda name, iteration, crew: failed.append(iteration.number) if name == "failed" else None  # noqa: E731
    runs = together([lambda rank=rank: train(harbour, rank, 10, at=die if rank == 2 else note) for rank in range(4)])
    assert isinstance(runs.pop(2), Killed)
    assert set(failed) == {5}
    assert_same_weights(runs, 10, seed=100)
    assert [size for _, size, _ in runs[0].history] == [4] * 4 + [3] * 6


def test_a_restarted_rank_receives_the_state(store: Any) -> None:
    harbour = Harbour(store, 3)
    back = threading.Event()

    def die(name: str, iteration: Any, crew: Crew) -> None:
        if name == "averaged" and iteration.number == 4:
            harbour.kill(crew.member)
            back.set()
            raise Killed

    def hold_on(name: str, iteration: Any, crew: Crew) -> None:
        if name == "decided" and iteration.number == 6:
            with harbour.lock:
                harbour.lock.wait_for(lambda: harbour.joining, 20)

    def again() -> Run:
        assert back.wait(30)
        while harbour.number < 6:
            time.sleep(0.01)
        return train(harbour, 1, 15, number=2)

    runs = together(
        [
            lambda: train(harbour, 0, 15, at=hold_on),
            lambda: train(harbour, 1, 15, at=die),
            lambda: train(harbour, 2, 15),
            again,
        ]
    )
    assert isinstance(runs.pop(1), Killed)
    assert_same_weights(runs, 15, seed=100)
    # The averaged update of iteration 4 counts although a rank died between averaging and voting.
    assert runs[0].history[3] == (3, 3, 4)
    assert len(runs[-1].history) < 15
    assert [key for key in store.list_keys() if "epoch" in key] == []


def test_when_the_source_dies_in_the_transfer_another_one_sends(store: Any) -> None:
    harbour = Harbour(store, 3)
    holds: list[tuple[bool, ...]] = []

    def die(name: str, iteration: Any, crew: Crew) -> None:
        restarted = name == "opened" and iteration.number > 1 and not all(iteration.holders)
        if (crew.member.rank == 1 and name == "averaged" and iteration.number == 4) or (crew.member.rank == 0 and restarted):
            harbour.kill(crew.member)
            raise Killed

    def note(name: str, iteration: Any, crew: Crew) -> None:
        if name == "decided":
            holds.append(iteration.holders)
        if name == "decided" and iteration.number == 5:
            with harbour.lock:
                harbour.lock.wait_for(lambda: harbour.joining, 20)

    def again() -> Run:
        while harbour.number < 5:
            time.sleep(0.01)
        return train(harbour, 1, 15, number=2)

    # Rank 0 gets as far as a group with somebody who lacks the state, and is the first who holds it.
    runs = together(
        [
            lambda: train(harbour, 0, 15, at=die),
            lambda: train(harbour, 1, 15, at=die),
            lambda: train(harbour, 2, 15, at=note),
            again,
        ]
    )
    assert [type(run) for run in runs] == [Killed, Killed, Run, Run]
    # Rank 1 has nothing, and after the failed transfer it still has nothing.
    assert holds[holds.index((True, False, True)) + 1] == (False, True)
    assert_same_weights(runs[2:], 15, seed=100)


def test_when_all_holders_are_lost_the_furthest_state_goes_on(store: Any, caplog: pytest.LogCaptureFixture) -> None:
    harbour = Harbour(store, 2)
    checkpoint: dict[str, Any] = {}

    def die(name: str, iteration: Any, crew: Crew) -> None:
        if name == "averaged" and iteration.number == 4:
            harbour.kill(crew.member)
            raise Killed

    def founder(rank: int) -> Run:
        return train(harbour, rank, 9, at=die)

    def late(rank: int) -> Run:
        while len(harbour.dead) < 2:
            time.sleep(0.01)
        crew = Crew(harbour, rank, 2)
        model, optimizer = build(rank)
        trainer = DataParallel(crew, model, optimizer, timeout=TIMEOUT)
        if rank == 1:
            trainer.load_state_dict({**trainer.state_dict(), "position": 2})
            checkpoint.update(digest=digest(model))
        run = Run(trainer)
        for step in trainer.steps(9):
            run.history.append((step.position, step.size, step.iteration.number))
            loss_of(model, step.shard(batch_at(step.position, samples=SAMPLES, batch_size=BATCH))).backward()
        return run

    results = together([lambda: founder(0), lambda: founder(1), lambda: late(0), lambda: late(1)])
    assert [type(result) for result in results[:2]] == [Killed, Killed]
    first, second = results[2:]
    assert digest(first.trainer.model) == digest(second.trainer.model)
    assert first.history[0][0] == 2
    assert "nobody holds the state" in caplog.text


def test_a_rank_that_comes_after_the_end_is_told(store: Any) -> None:
    harbour = Harbour(store, 2)
    first = together([lambda: train(harbour, 0, 3), lambda: train(harbour, 1, 3)])
    for member in list(harbour.members):
        harbour.kill(member)
    late = together([lambda: train(harbour, 0, 3, number=2), lambda: train(harbour, 1, 3, number=2)])
    assert [type(error) for error in late] == [CrewFinished, CrewFinished]
    assert first[0].trainer.position == 3


def test_a_failed_step_leaves_the_buffers_as_they_were(store: Any) -> None:
    harbour = Harbour(store, 2)

    def rank(number: int) -> nn.Module:
        crew = Crew(harbour, number)
        torch.manual_seed(number)
        model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        seen: list[Step] = []

        def refuse(name: str, iteration: Any, details: Any) -> None:
            if name == "bucket" and iteration.number == 3 and number == 1:
                trainer._group.close()  # what a broken connection does

        trainer = DataParallel(crew, model, optimizer, observer=refuse, timeout=TIMEOUT)
        for step in trainer.steps(5):
            seen.append(step)
            loss_of(model, step.shard(batch_at(step.position, samples=SAMPLES, batch_size=BATCH))).backward()
        assert [step.position for step in seen] == [0, 1, 2, 2, 3, 4]
        return model

    first, second = together([lambda: rank(0), lambda: rank(1)])
    assert digest(first) == digest(second)
    assert first[1].num_batches_tracked.item() == 5
