"""The generators, driven by hand: each test is a small history, the bad thing beside the good one."""

import pytest

from coxless import keys
from coxless.errors import CorruptStoreError, SupersededError
from coxless.protocol import RankState
from coxless.records import Member, Signature, parse_record

from .lockstep import MemoryStore, Rank, barrier_keys, found, register


def steps(rank: Rank, since: int = 0) -> list[str]:
    return [operation.step for operation in rank.log[since:]]


def arrive(*ranks: Rank) -> None:
    """All vote ok and run until they decide or wait."""
    for rank in ranks:
        rank.vote()
        rank.run()
    for rank in ranks:
        rank.run()


# --- founding


def test_founding_waits_for_all_and_the_last_to_come_closes_at_once() -> None:
    store = MemoryStore()
    early, late = Rank(store, 0, world_size=2), Rank(store, 1, world_size=2)
    early.run()
    assert early.waits
    early.lose_patience()  # a rank that was never seen is not "inactive"
    assert early.iteration == 0
    late.run()
    assert (late.iteration, late.participants) == (1, [0, 1])
    early.run()
    assert early.decisions == [(late.decisions[0].record, late.decisions[0].members, early.state.me)]


def test_founding_goes_on_without_the_absent_after_the_join_timeout_if_min_ranks_came() -> None:
    store = MemoryStore(join_timed_out=True)
    alone = Rank(store, 0, world_size=3, min_ranks=2)
    alone.run()
    alone.lose_patience()
    assert alone.iteration == 0
    second = Rank(store, 2, world_size=3, min_ranks=2)
    second.run()
    assert second.participants == [0, 2]


def test_a_rank_that_has_signed_twice_does_not_count_for_two() -> None:
    """Its connection broke, so it signed again: as many signatures as ranks, and one rank is not there."""
    store = MemoryStore()
    early, late = Rank(store, 0, world_size=2), Rank(store, 1, world_size=2)
    early.run()
    early.lose_patience()
    arrived = keys.arrived(0)
    store.data[arrived] += store.data[arrived]
    early.lose_patience()
    assert store.data[arrived].count(",") == 2
    assert early.iteration == 0
    late.run()
    assert (late.iteration, late.participants) == (1, [0, 1])


def test_of_who_has_signed_only_what_is_new_is_parsed_but_all_of_what_was_deleted_and_came_back() -> None:
    state = RankState(0, 3, 1, nonce="a", generation="f")
    one, two, three = (Signature(Member(rank, 1, "b"), "o") for rank in range(3))
    text = {each: f"{each.member}.o," for each in (one, two, three)}
    assert state.signatures_in(text[one]) == (one,)
    assert state.signatures_in(text[one]) == (one,)
    assert state.signatures_in(text[one] + text[two]) == (one, two)
    assert state.signatures_in(text[three]) == (three,)
    with pytest.raises(CorruptStoreError, match="holds 'nonsense', which is not a list of arrivals"):
        state.signatures_in(text[three] + "nonsense")
    assert state.signatures_in(text[three] + text[one]) == (three, one)
    state.start_barrier(state.record, (), member=True)
    assert state.signatures_in("") == ()


def test_nobody_holds_the_state_at_founding_and_everyone_does_one_iteration_later() -> None:
    _, ranks = found(2)
    assert [holds for _, holds in ranks[0].decisions[-1].members] == [False, False]


# --- the fast path


def test_the_fast_path_is_two_operations_a_rank_and_keeps_the_epoch() -> None:
    _, ranks = found(4)
    before = [len(rank.log) for rank in ranks]
    epoch = ranks[0].decisions[-1].record.epoch
    arrive(*ranks)
    assert sorted(tuple(steps(rank, n)) for rank, n in zip(ranks, before, strict=True)) == [
        ("arrive", "propose_same_epoch"),
        ("arrive", "propose_same_epoch"),
        ("arrive", "propose_same_epoch"),
        ("arrive", "propose_same_epoch", "wake"),
    ]
    assert {rank.decisions[-1].record for rank in ranks} == {ranks[0].decisions[-1].record}
    assert ranks[0].decisions[-1].record.epoch == epoch
    assert ranks[0].decisions[-1].record.committed


def test_a_thousand_iterations_leave_no_more_keys_than_two() -> None:
    store, ranks = found(3)
    arrive(*ranks)
    arrive(*ranks)
    few = len(store.data)
    for _ in range(1000):
        arrive(*ranks)
    assert ranks[0].iteration == 1003
    assert len(store.data) == few


# --- votes


def test_a_failed_vote_is_seen_by_the_fast_path_and_the_update_does_not_count() -> None:
    _, (a, b) = found(2)
    a.vote("o")
    b.vote("f")
    a.run()
    b.run()
    a.run()
    assert not a.decisions[-1].record.committed
    assert a.decisions[-1].record.epoch != a.decisions[-2].record.epoch  # a new process group for the retry
    assert [holds for _, holds in a.decisions[-1].members] == [True, True]
    assert b.decisions[-1].record == a.decisions[-1].record


def test_a_member_that_lost_the_state_is_not_listed_as_holding_it() -> None:
    _, (a, b) = found(2)
    arrive(a, b)
    a.vote("o")
    b.vote("j")
    for rank in (a, b, a):
        rank.run()
    assert [holds for _, holds in a.decisions[-1].members] == [True, False]
    assert not a.decisions[-1].record.committed


def test_a_failed_vote_that_comes_before_the_add_cannot_be_overtaken_by_a_fast_closer() -> None:
    _, (a, b) = found(2)
    a.vote("o")
    a.run()  # waits for full
    b.vote("f")
    b.run(before="arrive")  # signed and raised attention, not counted
    a.run()
    assert a.waits
    b.run(before="read_arrived")
    a.run()
    assert not a.decisions[-1].record.committed


# --- crashes


def test_a_crashed_member_is_left_behind_once_suspected_and_not_before() -> None:
    store, (a, b, c) = found(3)
    a.vote()
    a.run()
    c.vote()
    c.run()
    a.lose_patience()
    c.lose_patience()
    assert a.iteration == 1  # b is not suspected yet
    store.suspected.add(b.state.me)
    a.lose_patience()
    assert (a.iteration, a.participants) == (2, [0, 2])
    assert a.decisions[-1].record.committed  # both that go on voted ok
    c.run()
    assert c.decisions[-1].record == a.decisions[-1].record


def test_a_slow_member_that_arrives_at_last_keeps_the_epoch() -> None:
    _, (a, b) = found(2)
    a.vote()
    a.run()
    a.lose_patience()
    a.lose_patience()
    b.vote()
    b.run()
    a.run()
    assert a.iteration == b.iteration == 2
    assert a.decisions[-1].record.epoch == a.decisions[-2].record.epoch


def test_one_that_is_counted_and_dies_before_it_proposes_does_not_block_the_others() -> None:
    store, (a, b) = found(2)
    a.vote()
    a.run()
    b.vote()
    b.run(before="propose_same_epoch")  # it made the barrier complete; now it dies
    store.suspected.add(b.state.me)
    a.run()
    assert a.participants == [0, 1]  # it arrived, so it is listed once more
    arrive(a)
    a.lose_patience()
    assert a.participants == [0]


def test_a_winner_that_dies_at_once_leaves_nobody_waiting() -> None:
    store, (a, b, c) = found(3)
    for rank in (a, b, c):
        rank.vote()
        rank.run(before="propose_same_epoch")
    c.step()  # wins, and is never seen again
    a.run()
    b.run()
    assert a.decisions[-1].record == b.decisions[-1].record
    assert a.decisions[-1].record.winner == c.state.me
    store.suspected.add(c.state.me)
    arrive(a, b)
    a.lose_patience()
    b.lose_patience()
    a.run()
    assert a.participants == b.participants == [0, 1]


def test_a_rank_that_restarts_early_replaces_itself_without_any_timeout() -> None:
    store, (a, b) = found(2)
    old = b.state.me
    b2 = Rank(store, 1, world_size=2, nonce="bb")  # b crashed in its step, nobody noticed
    b2.run()
    a.vote()
    a.run()
    a.lose_patience()
    b2.run()
    assert a.decisions[-1].record == b2.decisions[-1].record
    assert b2.state.me.replaces(old)
    assert [holds for _, holds in a.decisions[-1].members] == [True, False]


def test_an_arrival_of_a_dead_incarnation_does_not_count_for_the_new_one() -> None:
    store, (a, b) = found(2)
    b.vote()
    b.run()  # counted, then crashed
    b2 = Rank(store, 1, world_size=2, nonce="bb")
    b2.run()
    a.vote()
    a.run()
    b2.run()
    assert [member for member, _ in a.decisions[-1].members] == [a.state.me, b2.state.me]
    assert b2.decisions[-1].record == a.decisions[-1].record


def test_a_joiner_cannot_be_outrun_for_ever() -> None:
    store, (a, b) = found(2)
    c = Rank(store, 2, world_size=3, nonce="cc")
    c.run(before="raise_attention")
    arrive(a, b)  # it signed, but the iteration went on before it raised attention
    c.run()
    assert parse_record(register(store)).attention
    arrive(a, b)
    c.run()
    assert a.participants == [0, 1, 2]
    assert c.decisions[-1].record == a.decisions[-1].record


# --- left out, superseded


def test_a_zombie_learns_that_it_was_left_out_and_rejoins_without_the_state() -> None:
    store, (a, b) = found(2)
    arrive(a, b)
    store.suspected.add(b.state.me)  # wrongly: it hangs in its step
    a.vote()
    a.run()
    a.lose_patience()
    assert a.participants == [0]
    store.suspected.clear()
    b.vote()
    b.run()
    assert b.iteration == 2  # decided nothing by its late arrival
    a.vote()
    a.run()
    b.run()
    assert a.participants == [0, 1]
    assert [holds for _, holds in a.decisions[-1].members] == [True, False]
    assert b.iteration == 4


def test_an_older_process_of_a_rank_stops_and_names_the_newer() -> None:
    store, (a, b) = found(2)
    b2 = Rank(store, 1, world_size=2, nonce="bb")
    b2.run()
    arrive(a, b)
    b2.run()
    assert isinstance(b.error, SupersededError)
    assert b2.state.me.incarnation in str(b.error)
    assert [member for member, _ in a.decisions[-1].members] == [a.state.me, b2.state.me]


# --- connections that break, stores that lose their data


def test_an_add_whose_reply_was_lost_is_not_repeated() -> None:
    _store, (a, b) = found(2)
    b.vote()
    b.step(breaks="after")
    b.run()
    a.vote()
    a.run()
    b.run()
    assert [op.step for op in b.log].count("arrive") == 1
    assert a.decisions[-1].record == b.decisions[-1].record


@pytest.mark.parametrize("breaks", ["before", "after"])
def test_a_lost_reply_at_any_step_costs_no_iteration(breaks: str) -> None:
    length = 3
    for point in range(2 * length):
        _, (a, b) = found(2)
        a.vote()
        b.vote()
        for number in range(100):
            if a.iteration == b.iteration == 2:
                break
            rank = (a, b)[number % 2]
            if not rank.idle:
                rank.step(breaks=breaks if number == point else "")
        assert a.decisions[-1].record == b.decisions[-1].record
        assert a.decisions[-1].record.committed


def test_a_store_that_lost_everything_gets_the_latest_record_back() -> None:
    store, (a, b) = found(2)
    arrive(a, b)
    a.vote()
    a.run()
    store.data.clear()
    a.step(breaks="before")
    a.run()
    b.vote()
    b.step(breaks="before")
    b.run()
    a.run()
    assert a.iteration == b.iteration == 3
    assert a.decisions[-1].record == b.decisions[-1].record
    assert a.decisions[-1].record.committed


def test_a_store_loss_that_only_compare_set_notices_is_noticed() -> None:
    """TCPStore returns the expected value for a missing key."""
    store, (a, b) = found(2)
    for rank in (a, b):
        rank.vote()
        rank.run(before="propose_same_epoch")
    store.data.clear()
    for _ in range(3):
        a.run()
        b.run()
        for rank in (a, b):
            if rank.waits:
                rank.lose_patience()
    assert a.iteration == b.iteration == 2
    assert a.decisions[-1].record == b.decisions[-1].record


def test_a_lost_arrival_is_signed_again() -> None:
    store, (a, b) = found(2)
    a.vote()
    a.run()
    a.lose_patience()
    for key in barrier_keys(store):
        del store.data[key]  # a clean-up that comes far too late
    a.lose_patience()
    store.suspected.add(b.state.me)
    a.lose_patience()
    assert a.participants == [0]


def test_a_lost_counter_gives_a_number_above_the_listed_one() -> None:
    store, (a, _b) = found(2)
    for _ in range(3):
        store.data["rank_1_incarnation"] = str(int(store.data["rank_1_incarnation"]) + 1)
    b2 = Rank(store, 1, world_size=2, nonce="bb")
    b2.run()
    a.vote()
    a.run()
    a.lose_patience()
    b2.run()
    assert b2.state.me.number == 5
    del store.data["rank_1_incarnation"]  # lost with a store, whose register the others have pushed forward
    b3 = Rank(store, 1, world_size=2, nonce="bc")
    b3.run()
    assert b3.state.me.number == 6


# --- a store that somebody else writes to


@pytest.mark.parametrize("value", ["", "42", "c1 x", "c1 a 1 1-abc 1 0 -", "c1 a 99999999999999999999 0 0 0 -"])
def test_a_foreign_value_in_the_register_is_one_error_that_names_it(value: str) -> None:
    store, (a, b) = found(2)
    store.data["global_iteration_counter"] = value
    arrive(a, b)
    errors = [rank.error for rank in (a, b) if rank.error]
    assert errors
    for error in errors:
        assert isinstance(error, CorruptStoreError)
        assert "global_iteration_counter" in str(error)


def test_a_list_that_is_missing_though_the_register_names_it_is_an_error_not_a_loop() -> None:
    store, _ = found(2)
    for key in [key for key in store.data if key.startswith("global_iteration_members")]:
        del store.data[key]
    joiner = Rank(store, 2, world_size=3)
    joiner.run()
    assert isinstance(joiner.error, CorruptStoreError)
