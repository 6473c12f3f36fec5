"""The library on a real TCPStore server process: what a training script sees."""

import threading
import time
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

import coxless
from coxless import fault, keys
from coxless.records import Member
from coxless_traces import mapping

from ..conftest import needs_native_barrier
from .crews import QUICK, crew_of, in_threads


@pytest.mark.parametrize("size", [1, 2, 10, 30])
def test_any_number_of_ranks_agree_on_every_iteration(address: str, size: int) -> None:
    def body(rank: int) -> list[tuple[object, ...]]:
        with crew_of(address, rank, size, patience=timedelta(seconds=0.5)) as crew:
            return [(i.number, i.epoch, i.participants, i.winner) for i in crew.iterations(until=20)]

    first, *others = in_threads(size, body)
    assert [row[0] for row in first] == list(range(1, 21))
    assert all(other == first for other in others)
    assert len({row[1] for row in first}) == 1, "no fault, so one epoch"


class CountingStore:
    """A real client whose commands are counted, and the size of what is sent with them."""

    def __init__(self, store: Any, commands: Counter[str], longest: Counter[str]) -> None:
        self._store, self._commands, self._longest = store, commands, longest

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._store, name)
        if name not in COMMANDS:
            return value

        def counted(*arguments: Any) -> Any:
            self._commands[name] += 1
            self._longest[name] = max(self._longest[name], len(repr(arguments)))
            return value(*arguments)

        return counted


COMMANDS = {"add", "append", "barrier", "check", "compare_set", "delete_key", "get", "multi_get", "multi_set", "set", "wait"}


@needs_native_barrier
def test_the_fast_path_costs_two_commands_a_rank_whose_size_does_not_grow(address: str) -> None:
    def run(size: int, iterations: int) -> tuple[Counter[str], Counter[str]]:
        commands: Counter[str] = Counter()
        longest: Counter[str] = Counter()
        begin = threading.Barrier(size)

        def body(rank: int) -> None:
            with crew_of(
                address,
                rank,
                size,
                patience=timedelta(seconds=0.5),
                heartbeat_interval=timedelta(minutes=1),
                heartbeat_timeout=timedelta(minutes=5),
            ) as crew:
                beaten = threading.Event()
                beat = crew._housekeeper._beat_if_due

                def beat_and_tell() -> None:
                    beat()
                    beaten.set()

                crew._housekeeper._beat_if_due = beat_and_tell  # type: ignore[method-assign]
                crew.advance()
                assert beaten.wait(60), "the only heartbeat within these iterations"
                begin.wait(60)
                for connection in (crew._driver.connection, crew._housekeeper._connection):
                    native = connection._native_barrier
                    connection.store = CountingStore(connection.store, commands, longest)
                    assert native
                    connection.arrive = connection.store.barrier
                begin.wait(60)
                for _ in range(iterations):
                    crew.advance()
                begin.wait(60)
                crew._driver.connection.store = crew._driver.connection.store._store
                crew._housekeeper._connection.store = crew._housekeeper._connection.store._store

        in_threads(size, body)
        store = coxless.connect(address)
        for key in store.list_keys():
            store.delete_key(key)
        return commands, longest

    for size in (2, 6):
        commands, longest = run(size, 50)
        assert commands["barrier"] == size * 50
        assert commands["compare_set"] == size * 50
        assert commands["set"] < 10, "the winner wakes nobody, as nobody can have run out of patience"
        assert commands["delete_key"] <= 3 * 50  # the whole crew's clean-up, in the background
        assert set(commands) <= {"barrier", "compare_set", "set", "delete_key", "list_keys"}
        assert all(length < 250 for length in longest.values()), longest


def test_twenty_thousand_iterations_leave_few_keys(address: str) -> None:
    def body(rank: int) -> int:
        with crew_of(address, rank, 2, patience=timedelta(seconds=0.5)) as crew:
            for iteration in crew.iterations(until=20_000):
                last = iteration.number
            return last

    assert in_threads(2, body) == [20_000, 20_000]
    left = sorted(coxless.connect(address).list_keys())
    assert len(left) <= 12, left


@pytest.mark.parametrize("kind", ["tcp", "prefix", "hash"])
def test_restarts_leave_few_keys(address: str, kind: str) -> None:
    """Rank 1 dies and is started again, over and over; each of its processes had a heartbeat. Some die before they take part."""
    store: dist.Store = dist.HashStore() if kind == "hash" else coxless.connect(address)
    store = dist.PrefixStore("run7", store) if kind == "prefix" else store
    options: dict[str, Any] = {**QUICK, "heartbeat_timeout": timedelta(minutes=5), "patience": timedelta(milliseconds=20)}
    over = threading.Event()

    def heartbeats() -> list[str]:
        return [key for key in store.list_keys() if "heartbeat_" in key]

    def body(rank: int) -> None:
        if rank == 0:
            with coxless.join(store, rank=0, world_size=2, **options) as crew:
                for iteration in crew.iterations():
                    time.sleep(0.005)
                    if over.is_set() and iteration.world_size == 1:
                        return
        for life in range(24):
            crew = coxless.join(store, rank=1, world_size=2, **options)
            if life % 3 == 2:
                crew._announce(
                    crew._state.me._replace(rank=1, number=crew._driver.connection.add(keys.incarnation(1), 1), nonce="a")
                )
            else:
                crew.advance()
                crew.advance()
            crew._housekeeper._stop.set()  # dead: no beat any more, and no word of leaving
            crew._housekeeper._wake.set()
            crew._housekeeper._thread.join(10)
        last = coxless.join(store, rank=1, world_size=2, **options)
        last.advance()
        deadline = time.monotonic() + 30
        while len(heartbeats()) > 3:
            assert time.monotonic() < deadline, heartbeats()
            last.advance()
        over.set()
        last.leave()

    in_threads(2, body)


def test_the_world_grows_by_ranks_that_join_later(address: str) -> None:
    grown: list[int] = []

    def body(rank: int) -> tuple[Member, ...] | None:
        with crew_of(address, rank, 2 if rank < 2 else 5) as crew:
            for iteration in crew.iterations():
                grown.append(iteration.world_size)
                if iteration.world_size == 5:
                    return iteration.participants
        return None

    views = in_threads(5, body)
    assert views[0] is not None
    assert [member.rank for member in views[0]] == [0, 1, 2, 3, 4]
    assert all(view == views[0] for view in views)


def test_a_failed_vote_is_not_committed_and_makes_a_new_epoch(address: str) -> None:
    def body(rank: int) -> list[tuple[int, bool, str]]:
        seen = []
        with crew_of(address, rank, 3) as crew:
            for iteration in crew.iterations(until=5):
                seen.append((iteration.number, iteration.committed, iteration.epoch))
                crew.vote(ok=not (rank == 1 and iteration.number == 3))
        return seen

    first, *others = in_threads(3, body)
    assert [committed for _, committed, _ in first] == [False, True, True, False, True]
    assert first[2][2] == first[0][2] != first[3][2] == first[4][2]
    assert others == [first, first]


def test_a_clean_leave_does_not_cost_the_heartbeat_timeout(address: str) -> None:
    def body(rank: int) -> int:
        with crew_of(address, rank, 2, heartbeat_timeout=timedelta(minutes=10)) as crew:
            for iteration in crew.iterations(until=5 if rank else 10):
                last = iteration.world_size
        return last

    assert in_threads(2, body) == [1, 2]


def test_a_rank_that_comes_after_all_have_left_is_told_so(address: str) -> None:
    def body(rank: int) -> None:
        with crew_of(address, rank, 2, min_ranks=2) as crew:
            crew.advance()
            met.wait(60)

    met = threading.Barrier(2)
    in_threads(2, body)
    with (
        crew_of(address, 1, 2, min_ranks=2) as late,
        pytest.raises(coxless.CrewEndedError, match="every member of iteration 1 has left"),
    ):
        late.advance()


def test_the_litter_of_a_rank_that_died_is_swept_with_the_next_epoch(address: str) -> None:
    def body(rank: int) -> None:
        with crew_of(address, rank, 2) as crew:
            for iteration in crew.iterations(until=10 if rank else 20):
                if iteration.number == 5 and rank == 0:
                    store = coxless.connect(address)
                    for k in (1, 2, 3):
                        store.set(keys.arrived(k), "")

    in_threads(2, body)
    iterations = [keys.iteration_of_barrier(key) for key in coxless.connect(address).list_keys()]
    assert min(k for k in iterations if k is not None) > 3


def test_any_store_of_torch_that_can_carry_it_is_taken(tmp_path: Any, address: str) -> None:
    stores = {
        "hash": dist.HashStore(),
        "file": dist.FileStore(str(tmp_path / "store"), -1),
        "prefix": dist.PrefixStore("run7", coxless.connect(address)),
    }
    for name, store in stores.items():

        def body(rank: int, store: dist.Store = store) -> int:
            with coxless.join(store, rank=rank, world_size=2, **QUICK) as crew:
                for iteration in crew.iterations(until=5):
                    last = iteration.number
            return last

        assert in_threads(2, body) == [5, 5], name
    assert any(key.endswith("run7/" + keys.REGISTER) for key in coxless.connect(address).list_keys())


def test_what_a_person_may_ask_a_running_crew(address: str) -> None:
    def body(rank: int) -> None:
        with crew_of(address, rank, 2) as crew:
            assert crew.iteration is None
            first = crew.advance()
            assert crew.iteration == first
            assert crew.get_global_iteration() == 1
            assert crew.get_active_ranks_for_coordination() == [0, 1]
            assert crew.trouble() is None
            crew.send_heartbeat()
            crew.advance()

    in_threads(2, body)


# --- bad input: one clear sentence, before anything is touched


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 4}, r"rank 4 is out of range for world_size 4: it must be 0 to 3"),
        ({"rank": -1}, r"rank -1 is out of range"),
        ({"world_size": 0}, r"world_size must be at least 1, not 0"),
        ({"min_ranks": 5}, r"min_ranks \(5\) must be 1 to world_size \(4\)"),
        (
            {"heartbeat_timeout": timedelta(seconds=1)},
            r"heartbeat_interval \(0:00:05\) must be shorter than heartbeat_timeout \(0:00:01\)",
        ),
        (
            {"patience": timedelta(seconds=1)},
            r"patience must be at most 0:00:00.500000, not 0:00:01: a wait in the store cannot be interrupted",
        ),
        ({"timeout": timedelta(milliseconds=100)}, r"patience .* must be shorter than timeout"),
        ({"timeout": timedelta(0)}, r"timeout must be longer than zero"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"rank": 0, "world_size": 4, **options}
    with pytest.raises(ValueError, match=message):
        coxless.join(dist.HashStore(), **arguments)


def test_a_heartbeat_timeout_that_an_advance_does_not_live_to_see_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """No error: a supervisor's mark makes a heartbeat timeout of any length sensible, and an advance can be repeated."""
    coxless.join(dist.HashStore(), rank=0, world_size=1)
    coxless.join(dist.HashStore(), rank=0, world_size=1, timeout=timedelta(minutes=1))
    assert caplog.text == "", "the defaults are in order"
    timing: dict[str, Any] = {**QUICK, "timeout": timedelta(minutes=1), "heartbeat_timeout": timedelta(minutes=1)}
    coxless.join(dist.HashStore(), rank=0, world_size=1, **timing)
    assert "heartbeat_timeout (0:01:00) is not shorter than timeout (0:01:00)" in caplog.text


def test_founding_without_the_absent_may_take_several_calls(address: str) -> None:
    """The join timeout counts on over calls that gave up."""
    timing = {"timeout": timedelta(seconds=0.8), "join_timeout": timedelta(seconds=2), "patience": timedelta(seconds=0.1)}
    with crew_of(address, 0, 2, **timing) as crew:
        gave_up: list[str] = []
        while True:
            try:
                assert crew.advance().world_size == 1
                break
            except coxless.IterationTimeoutError as error:
                gave_up.append(str(error))
    assert gave_up
    assert gave_up[0] == "founding: gave up waiting for rank 1 (never joined); after a join_timeout of 2 s it goes on with 1"


def test_a_number_of_seconds_is_not_a_duration() -> None:
    with pytest.raises(TypeError, match=r"timeout must be a datetime.timedelta, not 30"):
        coxless.join(dist.HashStore(), rank=0, world_size=1, timeout=30)  # type: ignore[arg-type]


def test_a_rank_that_is_not_given_must_be_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match=r"RANK is not set"):
        coxless.join(dist.HashStore(), world_size=1)
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(ValueError, match=r"RANK='first' is not a number"):
        coxless.join(dist.HashStore(), world_size=1)


def test_a_vote_that_contradicts_itself_is_refused(address: str) -> None:
    with crew_of(address, 0, 1) as crew:
        crew.advance()
        with pytest.raises(ValueError, match="ok=True with holds=False"):
            crew.vote(ok=True, holds=False)


@pytest.mark.parametrize("text", ["arive@40", "arrive", "arrive@x", "@4", "arrive@"])
def test_a_fault_that_would_never_strike_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COXLESS_FAULT", text)
    with pytest.raises(
        ValueError, match=r"expected STEP@ITERATION, such as arrive@40 .* with a step of take_incarnation, .*, won$"
    ):
        coxless.join(dist.HashStore(), rank=0, world_size=1)


def test_a_fault_announces_itself(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("COXLESS_FAULT", "won@1000")
    coxless.join(dist.HashStore(), rank=0, world_size=1)
    assert "COXLESS_FAULT=won@1000: this process is going to kill itself there" in caplog.text


def test_a_fault_may_strike_at_every_step_of_the_protocol_that_has_a_reply() -> None:
    steps = {row.step for row in mapping.STEPS}
    assert set(fault.STEPS) == steps - {"await_barrier", "clean_up"} | {"won"}  # the end of arrive; another thread


def test_a_supervisor_that_cannot_be_told_who_this_is_is_no_reason_to_end(
    address: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("COXLESS_MEMBER_FILE", str(tmp_path / "gone" / "rank0.members"))
    with crew_of(address, 0, 1) as crew:
        assert crew.advance().number == 1
        assert f"the supervisor cannot be told that this process is {crew.member}" in caplog.text


# --- deadlines


def test_a_deadline_names_who_never_joined(address: str) -> None:
    with (
        crew_of(address, 0, 3, timeout=timedelta(seconds=1)) as crew,
        pytest.raises(
            coxless.IterationTimeoutError, match=r"founding: gave up waiting for rank 1 \(never joined\), rank 2 \(never joined\)"
        ),
    ):
        crew.advance()


def test_an_advance_that_timed_out_can_be_repeated(address: str) -> None:
    timed_out = threading.Event()

    def waits(crew: coxless.Crew) -> int:
        crew.advance()
        with pytest.raises(
            coxless.IterationTimeoutError,
            match=r"^iteration 2: gave up waiting for rank 1 \(silent for \d s as seen from here\)$",
        ):
            crew.advance()
        timed_out.set()
        return crew.advance().number

    def hesitates(crew: coxless.Crew) -> int:
        crew.advance()
        assert timed_out.wait(60)
        return crew.advance().number

    def body(rank: int) -> int:
        with crew_of(address, rank, 2, timeout=timedelta(seconds=20 if rank else 1)) as crew:
            return hesitates(crew) if rank else waits(crew)

    assert in_threads(2, body) == [2, 2]


def test_iterations_that_timed_out_are_taken_up_where_they_stopped(address: str) -> None:
    """The vote was given: the iteration is not yielded a second time, with a vote that would count for nothing."""
    timed_out = threading.Event()

    def body(rank: int) -> list[tuple[int, bool]]:
        seen = []
        with crew_of(address, rank, 2, timeout=timedelta(seconds=20 if rank else 1)) as crew:
            while True:
                try:
                    for iteration in crew.iterations(until=4):
                        seen.append((iteration.number, iteration.committed))
                        if iteration.number == 2:
                            assert not rank or timed_out.wait(60)
                            crew.vote(rank == 1, holds=True)
                    return seen
                except coxless.IterationTimeoutError:
                    timed_out.set()

    wanted = [(1, False), (2, True), (3, False), (4, True)]
    assert in_threads(2, body) == [wanted, wanted]


def test_an_iteration_that_was_not_voted_on_is_yielded_again(address: str) -> None:
    with crew_of(address, 0, 1) as crew:
        assert [next(crew.iterations()).number for _ in range(2)] == [1, 1]
        assert [iteration.number for iteration in crew.iterations(until=3)] == [1, 2, 3]


def test_a_foreign_register_is_one_error_on_every_call(address: str) -> None:
    coxless.connect(address).set(keys.REGISTER, "7")
    with crew_of(address, 0, 1) as crew:
        for _ in range(2):
            with pytest.raises(coxless.CorruptStoreError, match=r"'global_iteration_counter' holds '7'"):
                crew.advance()


@pytest.mark.parametrize("value", ["abc", "12abc", "-1", ""])
@pytest.mark.parametrize("kind", ["tcp", "hash"])
def test_a_foreign_count_of_incarnations_is_an_error_at_once(address: str, value: str, kind: str) -> None:
    """A server would hang up on the first, and count on from 12 at the second."""
    store = coxless.connect(address) if kind == "tcp" else dist.HashStore()
    store.set(keys.incarnation(0), value)
    with coxless.join(store, rank=0, world_size=1, timeout=timedelta(minutes=3)) as crew:
        for _ in range(2):
            with pytest.raises(coxless.CorruptStoreError, match=rf"'rank_0_incarnation' holds '{value}', which is not a count"):
                crew.advance()
    assert store.get(keys.incarnation(0)).decode() == value


def test_bytes_that_are_no_text_are_an_error_too(address: str) -> None:
    coxless.connect(address).set(keys.REGISTER, b"\xff\xfe")
    with crew_of(address, 0, 1) as crew, pytest.raises(coxless.CorruptStoreError, match="not text in ASCII"):
        crew.advance()


def test_a_crew_that_was_left_cannot_advance(address: str) -> None:
    with crew_of(address, 0, 1) as crew:
        crew.advance()
    with pytest.raises(coxless.CoxlessError, match="has left the crew"):
        crew.advance()
