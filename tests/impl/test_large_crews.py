"""What is done otherwise where many ranks use one store, so that a slow one does not become slower by it."""

import math
import random
import time
from collections import Counter
from datetime import timedelta

import pytest

import coxless
from coxless.connection import REPLY_LIMIT, Connection
from coxless.records import Listed, Member
from coxless.server import StoreServer
from coxless.suspicion import is_lookout

from .crews import crew_of, in_threads


def crew_of_members(size: int) -> tuple[Member, ...]:
    return tuple(Member(rank, 1, f"{rank:x}") for rank in range(size))


@pytest.mark.parametrize(("size", "looking"), [(1, 1), (8, 8), (15, 15), (16, 8), (33, 9), (40, 8), (1000, 8)])
def test_a_few_of_those_who_are_present_look_who_else_is_alive(size: int, looking: int) -> None:
    present = crew_of_members(size)
    lookouts = [member for member in present if is_lookout(member, present)]
    assert len(lookouts) == looking
    assert lookouts[0] == present[0]
    assert is_lookout(Member(size, 1, "a"), present), "it does not know better"


def test_a_large_crew_goes_on_without_a_dead_member_for_whom_a_few_have_looked(address: str) -> None:
    looks: Counter[int] = Counter()

    def body(rank: int) -> tuple[int, ...]:
        crew = crew_of(address, rank, 40, patience=timedelta(milliseconds=250))
        observe = crew._observer.observe

        def counted(member: Member, value: str | None, now: float) -> bool:
            looks[rank] += member.rank == 17
            return observe(member, value, now)

        for _ in range(3):
            crew.advance()
        if rank == 17:
            crew._housekeeper._stop.set()  # no heartbeat any more, and no word
            return ()
        crew._observer.observe = counted  # type: ignore[method-assign]
        iteration = crew.advance()
        crew.leave()
        assert iteration.number == 4
        return tuple(member.rank for member in iteration.participants)

    participants = in_threads(40, body)
    expected = tuple(rank for rank in range(40) if rank != 17)
    assert all(found == expected for rank, found in enumerate(participants) if rank != 17)
    # Before all have signed, those who have are few, and all of them look; so once or twice. The timeout is eight patiences.
    assert 1 <= len([rank for rank in looks if looks[rank] > 4]) <= 16, looks


def test_everybody_looks_when_those_who_should_have_got_nowhere(address: str) -> None:
    with coxless.join(address, rank=0, world_size=1) as crew:
        crew.advance()
        members = (*crew_of_members(20), crew.member, *(Member(rank, 1, "a") for rank in range(21, 40)))
        crew._state.members = tuple(Listed(member, True) for member in members)
        crew._state.seen = members
        driver, observer = crew._driver, crew._observer
        assert [driver._looks(), is_lookout(crew.member, members)] == [True, True]
        crew._state.seen = members[1:]
        assert not driver._looks()
        k = crew._state.record.iteration
        assert driver._watch[0] == k
        driver._watch = (k, time.monotonic() - 3 * observer.timeout)
        assert driver._looks()
        driver._watch = (k - 1, driver._watch[1])
        assert not driver._looks(), "that was another iteration"


@pytest.mark.parametrize(("size", "longer"), [(1, 0.0), (64, 0.0), (65, 0.01), (1024, 9.6)])
def test_a_store_that_many_use_may_take_longer_to_answer(address: str, size: int, longer: float) -> None:
    connection = Connection(coxless.connect(address), world_size=size)
    assert connection.reply_limit == pytest.approx(REPLY_LIMIT + longer)
    connection.close()


def test_connections_that_gave_up_a_busy_store_do_not_all_come_back_at_once(address: str) -> None:
    def pause_after(silent: float, size: int) -> float:
        connection = Connection(coxless.connect(address), world_size=size)
        connection.shut_down(silent)
        begun = time.monotonic()
        connection.reconnect(begun + 30)
        assert time.monotonic() >= connection._not_before
        connection.close()
        return max(0.0, connection._not_before - begun)

    pauses = []
    for _ in range(4):
        random.seed(1)  # as training scripts do, on every rank
        pauses.append(pause_after(2.6, 164))
    assert len(set(pauses)) == 4, "each at another time"
    assert all(0.0 <= pause <= 0.5 for pause in pauses)
    assert pause_after(2.6, 64) == 0.0, "a few may come at once"
    assert pause_after(0.2, 1000) == 0.0, "its deadline passed, or its server went away: that is no busy store"


def test_a_store_that_is_not_asked_again_at_once_says_so_at_the_deadline(address: str) -> None:
    connection = Connection(coxless.connect(address), world_size=1000)
    connection.shut_down(2.6)
    connection._not_before = time.monotonic() + 60
    with pytest.raises(coxless.StoreUnreachableError, match="did not answer in time, and is not asked again at once"):
        connection.reconnect(time.monotonic() + 0.05)
    assert connection._attempt is None
    connection._not_before = 0.0
    connection.reconnect(time.monotonic() + 30)
    assert connection.read("nothing") is None
    connection.close()


def test_an_attempt_that_took_long_is_not_repeated_at_once_one_that_was_refused_is(
    server: StoreServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = Connection(coxless.connect(server.address), world_size=1000)
    server.kill()
    connection.shut_down()
    with pytest.raises(coxless.StoreUnreachableError, match="efused"):
        connection.reconnect(time.monotonic() + 0.3)
    assert connection._not_before == -math.inf
    monkeypatch.setattr("coxless.connection._SLOW", 0.0)  # now it took long
    with pytest.raises(coxless.StoreUnreachableError):
        connection.reconnect(time.monotonic() + 0.3)
    assert connection._not_before > -math.inf
    connection.close()
