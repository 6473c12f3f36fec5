"""What is swept, and what is not."""

from coxless import keys
from coxless.litter import litter
from coxless.records import Member

OLD, LISTED, NEWER, OTHER = Member(1, 1, "a"), Member(1, 2, "b"), Member(1, 3, "c"), Member(0, 1, "d")


def test_the_keys_of_barriers_that_all_have_passed_go() -> None:
    held = [*keys.barrier(4), *keys.barrier(5), keys.REGISTER, keys.members("5-0123456789ab"), keys.incarnation(1)]
    assert litter(held, 5, [OTHER]) == list(keys.barrier(4))


def test_the_key_that_opens_a_barrier_goes_with_its_count() -> None:
    """Only where the barrier is not one command; the last to come may have set it after the count was deleted."""
    opened = keys.count(4) + keys.OPENED
    assert litter([opened], 5, [OTHER]) == [keys.count(4)]
    assert litter([keys.count(4), opened], 5, [OTHER]) == [keys.count(4)]


def test_a_heartbeat_goes_when_there_is_a_newer_one_of_its_rank_and_it_is_not_listed() -> None:
    held = [keys.heartbeat(member) for member in (OLD, LISTED, NEWER, OTHER)]
    assert litter(held, 5, [OTHER, LISTED]) == [keys.heartbeat(OLD)]
    assert litter(held[:2], 5, [OTHER, LISTED]) == [keys.heartbeat(OLD)]
    assert litter(held[:1], 5, [OTHER, LISTED]) == [keys.heartbeat(OLD)], "the listed one has not beaten yet"


def test_the_newest_of_a_rank_that_is_not_listed_stays() -> None:
    """It may be about to take part: its mark, should it die, spares the others the timeout."""
    held = [keys.heartbeat(member) for member in (OLD, LISTED, OTHER)]
    assert litter(held, 5, [OTHER]) == [keys.heartbeat(OLD)]


def test_what_is_not_ours_stays() -> None:
    held = ["heartbeat_3", "heartbeat_x.1-a", "heartbeats", "published:word", "global_iteration_barrier:x:count"]
    assert litter(held, 5, [OTHER]) == []
