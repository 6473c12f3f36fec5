"""The short cut through a fault-free iteration does what the generator does: the same operations, the same state after them."""

import time
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from coxless.connection import Connection
from coxless.driver import Driver
from coxless.errors import StoreUnreachableError
from coxless.fast_path import fast_path
from coxless.iteration import Iteration, iteration_from
from coxless.protocol import Decision, RankState, advance, enter
from coxless.records import Flag, Record, parse_record
from coxless.suspicion import HeartbeatObserver

LATER = 1e12

Path = Callable[[int, float], Iteration | None]


class Logged:
    """A store that notes what is called on it, and can be told to fail at a call."""

    def __init__(self, store: Any, log: list[tuple[Any, ...]]) -> None:
        self._store, self._log = store, log
        self.fail_at: tuple[str, str] | None = None

    def clone(self) -> "Logged":
        return self

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._store, name)
        if name not in ("add", "set", "wait", "compare_set", "append"):
            return value

        def logged(*arguments: Any) -> Any:
            self._log.append((name, *[argument for argument in arguments if not isinstance(argument, timedelta)]))
            if self.fail_at == (name, "before"):
                self.fail_at = None
                raise dist.DistNetworkError("cut")
            reply = value(*arguments)
            if self.fail_at == (name, "after"):
                self.fail_at = None
                raise dist.DistNetworkError("cut")
            return reply

        return logged


def driver_of(
    rank: int,
    size: int,
    store: Any,
    *,
    generator_only: bool,
    join_timeout: float = LATER,
    patience: timedelta = timedelta(milliseconds=20),
) -> tuple[Driver, Logged, list[Any]]:
    log: list[Any] = []
    logged = Logged(store, log)
    driver = Driver(
        connection=Connection(logged),
        state=RankState(rank, size, 1, nonce=f"{rank}a", generation="f"),
        observer=HeartbeatObserver(timeout=LATER, longest_gap=1.0),
        patience=patience,
        join_timeout=join_timeout,
        announce=lambda member: None,
        watchers=[lambda state, operation, reply: None] if generator_only else [],
    )
    return driver, logged, log


def path_of(driver: Driver) -> Path:
    """The fast path, called with a number as `Crew.advance` calls it with its iteration."""
    state = driver.state
    present = iteration_from(Decision(state.record, state.listed, state.me), None)
    housekeeper: Any = SimpleNamespace(delete=state.deletions.extend)
    fast = fast_path(driver, housekeeper, present, timeout=LATER)

    def from_number(number: int, began: float) -> Iteration | None:
        nonlocal present
        following = fast(present if present.number == number else None, began)
        if following is not None:
            present = following
        return following

    return from_number


def step(driver: Driver, flag: Flag = "o", *, deadline: float = LATER, fast: Path | None = None) -> Record:
    """As `Crew.advance`, whose fast path is made anew whenever it was not taken."""
    number = driver.state.record.iteration
    if flag == "o":
        path = path_of(driver) if fast is None else fast
        iteration = path(number, time.monotonic())
        if iteration is not None:
            state = driver.state
            assert iteration == iteration_from(Decision(state.record, state.listed, state.me), None)._replace(
                joined=(), left=(), rejoined=False
            )
            return state.record
    decision = driver.decided(number)
    if decision is None:
        decision = driver.run(None if driver.unfinished else advance(driver.state, flag), deadline=deadline)
    return decision.record


@pytest.mark.parametrize(
    "fail_at", [None, ("add", "before"), ("add", "after"), ("compare_set", "before"), ("compare_set", "after")]
)
def test_it_takes_the_steps_of_the_generator(fail_at: tuple[str, str] | None) -> None:
    logs, states = [], []  # without any patience, so that no wake is spared
    for generator_only in (True, False):
        driver, logged, log = driver_of(0, 1, dist.HashStore(), generator_only=generator_only, patience=timedelta(0))
        driver.run(enter(driver.state), deadline=LATER)
        fast = path_of(driver)
        for number in range(2, 8):
            if number == 4:
                logged.fail_at = fail_at
            if generator_only or logged.fail_at is not None:
                assert step(driver, fast=fast).iteration == number
                fast = path_of(driver)
            else:
                following = fast(number - 1, time.monotonic())
                assert following is not None
                assert following.number == number
        state = driver.state
        logs.append(log)
        states.append(
            (state.record, state.record_text(), state.members, state.is_member, state.signed, state.full, state.deletions)
        )
    assert logs[0] == logs[1]
    assert states[0] == states[1]


def _is_wake(entry: tuple[Any, ...]) -> bool:
    return bool(entry[0] == "set" and entry[1].endswith(":full"))


def test_the_winner_wakes_nobody_while_no_patience_can_have_run_out() -> None:
    """Whoever waits at the barrier of k does so since k was decided at the earliest: after this rank came to the barrier before."""
    driver, _, log = driver_of(0, 1, dist.HashStore(), generator_only=False, patience=timedelta(seconds=60))
    driver.run(enter(driver.state), deadline=LATER)
    fast = path_of(driver)

    def wakes_if_the_one_before_began(seconds_ago: float) -> bool:
        number, now = driver.state.record.iteration, time.monotonic()
        assert fast(number, now - seconds_ago)
        del log[:]
        assert fast(number + 1, now)
        return any(map(_is_wake, log))

    assert not wakes_if_the_one_before_began(0)
    assert wakes_if_the_one_before_began(61)
    assert not wakes_if_the_one_before_began(1)


def test_the_winner_wakes_when_it_does_not_know_since_when_the_others_wait() -> None:
    driver, _, log = driver_of(0, 1, dist.HashStore(), generator_only=False, patience=timedelta(seconds=60))
    driver.run(enter(driver.state), deadline=LATER)
    fast = path_of(driver)
    assert fast(1, time.monotonic())
    step(driver, "f")  # a failed step: the slow path, and another epoch
    assert fast(3, time.monotonic()) is None, "it was the other epoch's"
    fast = path_of(driver)
    del log[:]
    assert fast(3, time.monotonic())
    assert any(map(_is_wake, log))
    del log[:]
    assert fast(4, time.monotonic())
    assert not any(map(_is_wake, log)), "it knows by now"


def test_attention_that_came_up_is_looked_at() -> None:
    store = dist.HashStore()
    driver, _, log = driver_of(0, 1, store, generator_only=False)
    driver.run(enter(driver.state), deadline=LATER)
    text = store.get("global_iteration_counter").decode()
    raised: Record = parse_record(text)._replace(attention=True)
    store.set("global_iteration_counter", str(raised))
    del log[:]
    step(driver)
    assert [entry[0] for entry in log] == ["add", "set", "compare_set", "compare_set", "set", "compare_set", "set"]


def test_a_decision_on_which_attention_was_raised_at_once_is_a_decision() -> None:
    """Another member wins, and a joiner raises attention on its record before this rank's proposal arrives: the reply names both."""
    store = dist.HashStore()
    driver, logged, _ = driver_of(0, 1, store, generator_only=False)
    driver.run(enter(driver.state), deadline=LATER)
    won = driver.state.record._replace(iteration=2, committed=True, attention=True, winner=driver.state.me)
    barrier = logged._store.add

    def overtaken(key: str, amount: int) -> int:
        count: int = barrier(key, amount)
        store.set("global_iteration_counter", str(won))
        return count

    logged.__dict__["add"] = overtaken
    assert step(driver) == won
    assert not driver.unfinished
    assert driver.state.record.attention


def test_a_barrier_that_does_not_fill_goes_the_slow_way() -> None:
    store = dist.HashStore()
    first, _, _ = driver_of(0, 2, store, generator_only=False, join_timeout=0.0)
    second, _, _ = driver_of(1, 2, store, generator_only=False)
    generator = enter(second.state)
    operation = next(generator)  # the second rank signs by hand, so that the first can found with it
    while operation.step != "read_arrived":
        operation = generator.send(second._perform[type(operation)](operation))
    first.run(enter(first.state), deadline=LATER)
    with pytest.raises(Exception, match="gave up waiting for rank 1"):
        step(first, deadline=0.0)
    assert first.unfinished


def test_a_broken_connection_is_not_used_again_before_it_is_made_anew() -> None:
    driver, _, log = driver_of(0, 1, dist.HashStore(), generator_only=False)
    driver.run(enter(driver.state), deadline=LATER)
    driver.connection.broken = True
    del log[:]
    assert path_of(driver)(1, time.monotonic()) is None
    assert log == []
    assert driver.run(None, deadline=LATER).record.iteration == 2


def test_an_advance_whose_store_stays_away_can_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    driver, logged, _ = driver_of(0, 1, dist.HashStore(), generator_only=False)
    driver.run(enter(driver.state), deadline=LATER)
    logged.fail_at = ("add", "after")

    def away(deadline: float) -> None:
        raise StoreUnreachableError("away")

    with monkeypatch.context() as patch:
        patch.setattr(driver.connection, "reconnect", away)
        for _ in range(2):
            with pytest.raises(StoreUnreachableError):
                step(driver)
    assert driver.run(None, deadline=LATER).record.iteration == 2
