"""The model's store does what TCPStore does, the odd parts included."""

import pytest

from coxless_model.store import EMPTY, MISSING, PROBE, REGISTER, THERE, Key, Operation, Store, Value, execute, key_text, lost

FULL = ("full", 7)
COUNT = ("count", 7)


def after(*operations: Operation) -> tuple[Store, Value]:
    store: Store = EMPTY
    reply: Value = None
    for operation in operations:
        store, reply = execute(store, operation)
    return store, reply


def test_compare_set_creates_a_missing_key_when_nothing_is_expected() -> None:
    store, reply = after(("compare_set", REGISTER, MISSING, "a"))
    assert (store.get(REGISTER), reply) == ("a", "a")


def test_compare_set_on_a_missing_key_stores_nothing_and_returns_what_was_expected() -> None:
    assert after(("compare_set", REGISTER, "a", "b")) == (EMPTY, "a")


def test_compare_set_returns_what_the_key_holds_then() -> None:
    _, won = after(("set", REGISTER, "a"), ("compare_set", REGISTER, "a", "b"))
    _, lost_race = after(("set", REGISTER, "c"), ("compare_set", REGISTER, "a", "b"))
    assert (won, lost_race) == ("b", "c")


def test_two_writers_of_the_same_value_both_see_it_returned() -> None:
    _, second = after(("set", REGISTER, "a"), ("compare_set", REGISTER, "a", "b"), ("compare_set", REGISTER, "a", "b"))
    assert second == "b"


def test_reading_changes_nothing_and_never_blocks() -> None:
    assert after(("read", REGISTER)) == (EMPTY, PROBE)
    assert after(("set", REGISTER, "a"), ("read", REGISTER))[1] == "a"


def test_set_and_append_have_no_reply() -> None:
    assert after(("set", FULL, 1))[1] is None
    assert after(("append", ("arrived", 7), 1))[1] is None


def test_appending_twice_is_signing_once() -> None:
    store, _ = after(("append", FULL, 2), ("append", FULL, 1), ("append", FULL, 2))
    assert store.get(FULL) == (1, 2)


def test_wait_answers_only_when_the_key_is_there() -> None:
    assert after(("wait", FULL))[1] is None
    assert after(("set", FULL, 1), ("wait", FULL))[1] == THERE


def test_add_counts_from_nothing() -> None:
    assert after(("add", FULL, 1), ("add", FULL, 2))[1] == 3


def test_any_compare_set_of_a_barriers_key_lets_through_whoever_waits_there() -> None:
    waiting = [("barrier", COUNT, 2)]
    assert after(*waiting, ("barrier_reply", COUNT, 2))[1] is None
    store, told = after(*waiting, ("compare_set", COUNT, PROBE, PROBE))
    assert told == 1
    assert execute(store, ("barrier_reply", COUNT, 2))[1] == THERE
    _, last = execute(store, ("barrier", COUNT, 2))
    assert last == THERE, "whoever comes is counted as before"
    _, another = execute(store, ("barrier", COUNT, 3))
    assert another is None
    assert after(("compare_set", COUNT, PROBE, PROBE), ("barrier", COUNT, 2))[1] is None, "nobody waited"


def test_delete_key_says_whether_there_was_one() -> None:
    assert after(("set", FULL, 1), ("delete_key", FULL)) == (EMPTY, True)
    assert after(("delete_key", FULL)) == (EMPTY, False)


def test_another_order_of_writing_is_the_same_store() -> None:
    assert after(("set", FULL, 1), ("set", REGISTER, 2)) == after(("set", REGISTER, 2), ("set", FULL, 1))


def test_a_lost_store_is_another_store() -> None:
    store, _ = after(("set", FULL, 1))
    assert lost(store).keys == ()
    assert lost(store).instance == store.instance + 1


@pytest.mark.parametrize(
    ("key", "text"),
    [
        (REGISTER, "global_iteration_counter"),
        (("incarnation", 1), "rank_1_incarnation"),
        (("count", 42), "global_iteration_barrier:42:count"),
        (("full", 42), "global_iteration_barrier:42:full"),
        (("arrived", 42), "global_iteration_barrier:42:arrived"),
        (("heartbeat", (1, 2, 0)), "heartbeat_1.2-0"),
        (("members", (3, (((0, 1, 0), True), ((1, 2, 0), False)))), "global_iteration_members:3-0.1-0,1.2-0*"),
        (("drawn_arrived",), "global_iteration_barrier:arrived"),
    ],
)
def test_a_key_is_written_as_documented(key: Key, text: str) -> None:
    assert key_text(key) == text
