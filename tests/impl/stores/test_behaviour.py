"""What torch documents for a Store, and what the protocol leans on, on every store that is supported: the rows of docs/stores.md.

A store that keeps less is named where it does, so that the table cannot promise it.
"""

import threading
from collections.abc import Callable
from datetime import timedelta

import pytest
from torch.distributed import DistStoreError, FileStore, PrefixStore, Store, TCPStore

from coxless.stores.etcd import EtcdStore

from .waits import LONG, PROBE, SOON, late, runs_out

LARGE = 1_000_000


# -- set, get, values


@pytest.mark.parametrize(
    "value", [b"text", b"", b"\x00\xff\n|}{~ \x80", bytes(range(256)), b"x" * LARGE], ids=lambda v: f"{len(v)} bytes"
)
def test_a_value_comes_back_as_it_was_set(store: Store, value: bytes) -> None:
    store.set("k", value)
    assert store.get("k") == value


def test_the_last_set_counts(store: Store) -> None:
    for value in ("1", "2", "", "3"):
        store.set("k", value)
    assert store.get("k") == b"3"


@pytest.mark.parametrize("key", ["", "a/b", "a b", "a|b", "a}b", "a~b", "ü", "a%7Cb", "a\nb", "k" * 2000])
def test_a_key_may_be_any_text(store: Store, key: str) -> None:
    store.set(key, "1")
    store.append(key, "2")
    assert store.get(key) == b"12"
    assert store.check([key])
    assert store.add(key, 1) == 13
    assert store.delete_key(key)
    assert not store.check([key])


def test_keys_that_begin_alike_are_not_mixed_up(store: Store) -> None:
    names = ["k", "k|", "k|+", "k}", "k~", "kk", "k/", "K"]
    for name in names:
        store.set(name, name)
    store.delete_key("k")
    assert [store.get(name) for name in names[1:]] == [name.encode() for name in names[1:]]
    assert not store.check(["k"])


def test_text_and_bytes_are_the_same(store: Store) -> None:
    store.set("k", "ü")
    assert store.compare_set("k", "ü", "ö") == "ö".encode()
    assert store.get("k") == "ö".encode()


@pytest.mark.parametrize("kind", [int, type(None), list])
def test_what_is_neither_text_nor_bytes_is_refused(full: Store, kind: type) -> None:
    with pytest.raises(TypeError):
        full.set("k", kind())
    with pytest.raises(TypeError):
        full.set(kind(), "v")


# -- compare_set: what each row does, what it returns


@pytest.mark.parametrize(
    ("before", "expected", "desired", "returned", "after"),
    [
        (None, "", "new", "new", "new"),
        (None, "old", "new", "old", None),  # the expected value, as if it were the current one: "the store lost its data"
        ("old", "old", "new", "new", "new"),
        ("old", "other", "new", "old", "old"),
        ("old", "", "new", "old", "old"),
        ("", "", "new", "new", "new"),  # an empty value is as good as none
        (None, "", "", "", ""),
        ("old", "old", "old", "old", "old"),
    ],
)
def test_compare_set(store: Store, before: str | None, expected: str, desired: str, returned: str, after: str | None) -> None:
    if before is not None:
        store.set("k", before)
    assert store.compare_set("k", expected, desired) == returned.encode()
    assert store.check(["k"]) == (after is not None)
    if after is not None:
        assert store.get("k") == after.encode()


def test_compare_set_sees_what_was_appended_and_added(store: Store) -> None:
    store.set("s", "1,")
    store.append("s", "2,")
    assert store.compare_set("s", "1,", "new") == b"1,2,"
    assert store.get("s") == b"1,2,"
    store.append("a", "1,")
    store.append("a", "2,")
    assert store.compare_set("a", "1,", "new") == b"1,2,"
    assert store.compare_set("a", "1,2,", "new") == b"new"
    store.append("a", "!")
    assert store.get("a") == b"new!"
    store.add("n", 7)
    assert store.compare_set("n", "7", "8") == b"8"
    assert store.add("n", 1) == 9


def test_a_probe_reads_without_blocking_or_creating(store: Store) -> None:
    store.set_timeout(timedelta(0))  # a blocking read would fail
    assert store.compare_set("k", PROBE, PROBE) == PROBE.encode()
    assert not store.check(["k"])
    store.set("k", "value")
    assert store.compare_set("k", PROBE, PROBE) == b"value"
    store.set("k", "")
    assert store.compare_set("k", PROBE, PROBE) == b""


# -- add, append, delete


def test_add_counts_from_nothing_up_and_down(store: Store) -> None:
    assert [store.add("n", amount) for amount in (0, 5, -7, 0, 1)] == [0, 5, -2, -2, -1]
    assert store.get("n") == b"-1"


def test_add_goes_on_from_a_number_that_was_set(store: Store) -> None:
    store.set("n", "41")
    assert store.add("n", 1) == 42


@pytest.mark.parametrize("kind", ["EtcdStore", "HashStore", "FileStore"])
def test_add_to_what_is_no_number_is_an_error(kind: str, any_store: Callable[[str], Store]) -> None:
    """TCPStore hangs up."""
    store = any_store(kind)
    store.set("n", "text")
    with pytest.raises(ValueError, match=r"stoll|number"):
        store.add("n", 1)
    assert store.get("n") == b"text"


def test_append_creates_and_keeps_the_order(store: Store) -> None:
    for part in ("a,", "", "b,", "a,"):
        store.append("k", part)
    assert store.get("k") == b"a,b,a,"
    store.set("k", "new,")
    store.append("k", "c,")
    assert store.get("k") == b"new,c,"


def test_delete(store: Store) -> None:
    store.set("k", "1")
    store.append("k", "2")
    assert store.delete_key("k")
    assert store.delete_key("k") == isinstance(store, FileStore)  # no error, and FileStore even says that it was there
    assert not store.check(["k"])
    assert store.compare_set("k", "", "again") == b"again"
    assert store.get("k") == b"again"


# -- several keys


def test_multi_set_and_multi_get(store: Store) -> None:
    names = [f"k{n}" for n in range(250)]
    store.multi_set(names, [str(n) for n in range(250)])
    assert store.multi_get(names) == [str(n).encode() for n in range(250)]
    assert store.multi_get(["k7", "k7"]) == [b"7", b"7"]
    store.multi_set(["k7"], ["new"])
    assert store.get("k7") == b"new"


def test_multi_get_waits_for_the_missing_ones(full: Store) -> None:
    full.set("here", "1")
    reader = full.clone()
    with late(lambda: full.set("there", "2")):
        assert reader.multi_get(["here", "there"]) == [b"1", b"2"]
    full.set_timeout(SOON)
    with pytest.raises(DistStoreError):
        full.multi_get(["here", "never"])


def test_check_wants_them_all(store: Store) -> None:
    assert store.check([])
    assert not store.check(["a"])
    store.set("a", "")
    assert store.check(["a"])
    assert not store.check(["a", "b"])
    store.append("b", "x")
    store.add("c", 0)
    assert store.check(["a", "b", "c"])
    assert not store.check(["a", "missing", "c"])


def test_the_list_of_keys(store: Store) -> None:
    own = ["efcount/"] if isinstance(store, FileStore) else []  # how many have it open
    assert store.list_keys() == own
    store.set("a", "1")
    store.append("b/c", "1")
    store.append("b/c", "2")
    store.add("n", 1)
    assert sorted(store.list_keys()) == sorted([*own, "a", "b/c", "n"])
    store.delete_key("b/c")
    assert sorted(store.list_keys()) == sorted([*own, "a", "n"])


def test_the_list_of_keys_and_their_number(barring: Store) -> None:
    assert barring.list_keys() == []
    barring.set("a", "1")
    barring.append("b/c", "1")
    barring.append("b/c", "2")
    barring.add("n", 1)
    barring.compare_set("ü", "", "1")
    barring.barrier("met", 1, LONG)
    assert sorted(barring.list_keys()) == sorted(["a", "b/c", "n", "ü", "met"])
    assert barring.num_keys() == 5
    barring.delete_key("met")
    barring.delete_key("b/c")
    assert sorted(barring.list_keys()) == ["a", "n", "ü"]
    assert barring.num_keys() == 3


def test_the_extended_operations_are_announced(full: Store) -> None:
    assert full.has_extended_api()
    assert PrefixStore("p", full).has_extended_api()


# -- order


def test_what_was_appended_before_a_flag_is_there_when_the_flag_is(store: Store) -> None:
    reader = store.clone()
    for turn in range(100):
        store.append(f"arrived{turn}", "me,")
        store.set(f"full{turn}", "1")
        reader.wait([f"full{turn}"], LONG)
        assert reader.compare_set(f"arrived{turn}", PROBE, PROBE) == b"me,"


# -- many at once


def test_of_many_threads_nothing_is_lost(store: Store) -> None:
    """Those of a HashStore have no other way to share it; between processes: test_many_clients.py."""
    numbers: list[int] = []
    wins: list[bytes] = []

    def run(me: int) -> None:
        mine = store.clone()
        for turn in range(25):
            numbers.append(mine.add("n", 1))
            mine.append("log", f"{me}.{turn},")
            if (won := mine.compare_set(f"decision{turn}", "", f"by {me}")) == f"by {me}".encode():
                wins.append(won)

    threads = [threading.Thread(target=run, args=(me,)) for me in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(numbers) == list(range(1, 101))
    assert len(wins) == 25
    log = store.get("log").decode().split(",")[:-1]
    assert sorted(log) == sorted(f"{me}.{turn}" for me in range(4) for turn in range(25))


# -- clones


def test_a_clone_shares_the_keys(store: Store) -> None:
    clone = store.clone()
    clone.set("k", "1")
    assert store.get("k") == b"1"


def test_a_clone_begins_with_the_originals_timeout_and_has_its_own_from_then_on(full: Store) -> None:
    full.set_timeout(timedelta(seconds=7))
    clone = full.clone()
    assert clone.timeout == timedelta(seconds=7)
    clone.set_timeout(timedelta(seconds=1))
    assert full.timeout == timedelta(seconds=7)


def test_a_clone_works_while_the_original_waits(store: Store) -> None:
    clone = store.clone()
    thread = threading.Thread(target=store.wait, args=(["k"], LONG))
    thread.start()
    clone.add("n", 1)
    clone.set("k", "1")
    thread.join(30)
    assert not thread.is_alive()


# -- below torch's own


def test_under_a_prefix_the_store_does_the_same(store: Store) -> None:
    prefixed = PrefixStore("p", store)
    prefixed.set("k", b"\x00")
    assert prefixed.get("k") == b"\x00"
    assert store.get("p/k") == b"\x00"
    assert prefixed.compare_set("k", b"\x00", "v") == b"v"
    assert prefixed.add("n", 2) == 2
    prefixed.append("a", "x")
    prefixed.multi_set(["c", "d"], ["1", "2"])
    assert prefixed.multi_get(["a", "c", "d"]) == [b"x", b"1", b"2"]
    assert prefixed.check(["a", "k"])
    assert prefixed.delete_key("k")
    assert not prefixed.check(["k"])
    with pytest.raises(RuntimeError) as caught:
        prefixed.wait(["k"], SOON)
    assert runs_out(caught.value)


def test_a_file_store_keeps_its_keys_for_whoever_comes_next(any_store: Callable[[str], Store]) -> None:
    any_store("FileStore").set("k", "1")
    assert any_store("FileStore").get("k") == b"1"


def test_the_kinds_are_what_they_are_called(full: Store) -> None:
    assert isinstance(full, TCPStore | EtcdStore)
