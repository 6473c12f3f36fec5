"""What the code leans on in torch's stores, each fact pinned by one test; the traps with them.

A failure here after an upgrade of torch means: read the code that names the fact before anything else.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import DistNetworkError, DistStoreError, FileStore, HashStore, PrefixStore, Store, TCPStore

from coxless.server import StoreServer, start_server
from coxless.store import connect

from ..conftest import needs_native_barrier
from .crews import stopped

SOON = timedelta(milliseconds=50)
LONG = timedelta(seconds=60)
PROBE = "?probe?"


@pytest.fixture
def tcp(server: StoreServer, request: pytest.FixtureRequest) -> Store:
    """A client whose keys are its own test's."""
    return PrefixStore(request.node.name, connect(server.address))


@pytest.fixture(params=["TCPStore", "HashStore", "FileStore"])
def store(request: pytest.FixtureRequest, server: StoreServer, tmp_path: Path) -> Store:
    if request.param == "TCPStore":
        return PrefixStore(request.node.name, connect(server.address))
    return HashStore() if request.param == "HashStore" else FileStore(str(tmp_path / "store"), -1)


def is_there(store: Store, key: str) -> bool:
    there: bool = store.check([key])
    return there


# -- compare_set


@pytest.mark.parametrize(
    ("before", "expected", "desired", "returned", "after"),
    [
        (None, "", "new", "new", "new"),
        (None, "old", "new", "old", None),  # the expected value, as if it were the current one: "the store lost its data"
        ("old", "old", "new", "new", "new"),
        ("old", "other", "new", "old", "old"),
        ("old", "", "new", "old", "old"),
        ("", "", "new", "new", "new"),  # an empty value is as good as none
    ],
)
def test_compare_set(store: Store, before: str | None, expected: str, desired: str, returned: str, after: str | None) -> None:
    if before is not None:
        store.set("k", before)
    assert store.compare_set("k", expected, desired) == returned.encode()
    assert is_there(store, "k") == (after is not None)
    if after is not None:
        assert store.get("k") == after.encode()


def test_two_writers_of_the_same_value_both_seem_to_win(store: Store) -> None:
    """So a value has to name its writer."""
    assert store.compare_set("k", "", "same") == b"same"
    assert store.compare_set("k", "", "same") == b"same"


def test_one_of_many_concurrent_compare_sets_wins(tcp: Store) -> None:
    tcp.set("register", "0")
    replies: dict[int, bytes] = {}
    start = threading.Barrier(8)

    def compete(me: int) -> None:
        mine = tcp.clone()
        start.wait()
        replies[me] = mine.compare_set("register", "0", f"by {me}")

    threads = [threading.Thread(target=compete, args=(me,)) for me in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(replies.values())) == 1  # the losers are told the winner's value in the reply
    assert sum(reply == f"by {me}".encode() for me, reply in replies.items()) == 1


def test_a_probe_reads_without_blocking_or_creating(store: Store) -> None:
    store.set_timeout(timedelta(0))  # a blocking read would fail
    assert store.compare_set("k", PROBE, PROBE) == PROBE.encode()
    assert not is_there(store, "k")
    store.set("k", "value")
    assert store.compare_set("k", PROBE, PROBE) == b"value"
    store.set("k", "")
    assert store.compare_set("k", PROBE, PROBE) == b""


# -- waking


def woken_by(store: Store, key: str, action: Callable[[Store], object]) -> bool:
    """Whether a waiter that waits already returns after `action`."""
    waiter = store.clone()
    came: list[bool] = []

    def wait() -> None:
        try:
            waiter.wait([key], LONG)
            came.append(True)
        except RuntimeError:
            came.append(False)

    thread = threading.Thread(target=wait)
    thread.start()
    if not isinstance(store, FileStore):  # it polls
        asleep(thread)
    action(store)
    thread.join()
    return came[0]


@pytest.mark.parametrize(
    "action",
    [
        lambda store: store.set("k", "1"),
        lambda store: store.add("k", 1),
        lambda store: store.append("k", "1"),
        lambda store: store.compare_set("k", "", "1"),
    ],
    ids=["set", "add", "append", "compare_set"],
)
def test_every_operation_that_creates_a_key_wakes_its_waiters(tcp: Store, action: Callable[[Store], object]) -> None:
    assert woken_by(tcp, "k", action)


@pytest.mark.parametrize("kind", ["HashStore", "FileStore"])
def test_set_wakes_waiters_of_the_other_stores(kind: str, tmp_path: Path) -> None:
    store = HashStore() if kind == "HashStore" else FileStore(str(tmp_path / "store"), -1)
    assert woken_by(store, "k", lambda store: store.set("k", "1"))


# -- order, replies, connections


def test_what_was_appended_before_a_flag_is_there_when_the_flag_is(tcp: Store) -> None:
    reader = tcp.clone()
    for turn in range(200):
        tcp.append(f"arrived{turn}", "me,")
        tcp.set(f"full{turn}", "1")
        reader.wait([f"full{turn}"], LONG)
        assert reader.compare_set(f"arrived{turn}", PROBE, PROBE) == b"me,"


def test_appends_of_several_connections_are_all_kept(tcp: Store) -> None:
    def sign(me: int) -> None:
        mine = tcp.clone()
        for _ in range(50):
            mine.append("arrived", f"{me},")
        mine.check(["arrived"])

    threads = [threading.Thread(target=sign, args=(me,)) for me in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    signatures = tcp.get("arrived").decode().split(",")[:-1]
    assert sorted(signatures) == sorted(str(me) for me in range(4) for _ in range(50))


@pytest.mark.processes
def test_set_has_no_reply_and_so_succeeds_on_a_dead_server() -> None:
    with start_server() as server:
        store = connect(server.address)
        store.set("k", "1")
        assert store.check(["k"])
        server.kill()
        store.set("k", "2")  # no error
        with pytest.raises(DistNetworkError):
            store.check(["k"])


def test_a_clone_works_while_the_original_is_blocked(tcp: Store) -> None:
    clone = tcp.clone()
    thread = threading.Thread(target=tcp.wait, args=(["k"], LONG))
    thread.start()
    clone.set("k", "1")  # it would have to wait for the end of the wait if they shared the connection
    thread.join()


@pytest.mark.processes
def test_a_client_never_reconnects_but_its_clone_reaches_the_new_and_empty_server() -> None:
    with start_server() as server:
        store = connect(server.address)
        store.set("k", "1")
        assert store.check(["k"])
        server.kill()
        server.start()
        with pytest.raises(DistNetworkError):
            store.add("n", 1)
        with pytest.raises(DistNetworkError):
            store.add("n", 1)
        assert not store.clone().check(["k"])


@pytest.mark.processes
def test_a_dead_server_ends_a_blocked_wait() -> None:
    with start_server() as server:
        store = connect(server.address)
        ended: list[BaseException] = []

        def wait() -> None:
            try:
                store.wait(["never"], LONG)
            except RuntimeError as error:
                ended.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        server.kill()
        thread.join(30)
        assert isinstance(ended[0], DistNetworkError)


@pytest.mark.processes
def test_only_shutting_its_socket_down_frees_a_client_of_a_stopped_server() -> None:
    """The client's own timeouts assume a live server; connection.py builds its watchdog on this."""
    with start_server() as server:
        store = connect(server.address)
        match = re.search(r"client=.*?\bfd=(\d+)", repr(store))
        assert match is not None
        ended: list[BaseException] = []

        def add() -> None:
            try:
                store.add("n", 1)
            except RuntimeError as error:
                ended.append(error)

        os.kill(server.pid, signal.SIGSTOP)
        try:
            thread = threading.Thread(target=add)
            thread.start()
            with socket.socket(fileno=os.dup(int(match.group(1)))) as twin:
                twin.shutdown(socket.SHUT_RDWR)
            thread.join(30)
            assert isinstance(ended[0], DistNetworkError)
        finally:
            os.kill(server.pid, signal.SIGCONT)


@pytest.mark.processes
def test_what_a_killed_client_had_sent_stays(server: StoreServer) -> None:
    """Keys, counts and signatures of the dead stay, and nobody is told."""
    code = (
        "import os, sys; from coxless.store import connect; s = connect(sys.argv[1])\n"
        "s.set('dead_set', 'x'); s.append('dead_append', 'x,'); s.add('dead_add', 3); s.set('dead_last', 'x'); os.kill(os.getpid(), 9)"
    )
    ended = subprocess.run([sys.executable, "-c", code, server.address], check=False)
    assert ended.returncode == -signal.SIGKILL
    store = connect(server.address)
    store.wait(["dead_last"], LONG)
    assert (store.get("dead_set"), store.get("dead_append"), store.add("dead_add", 0)) == (b"x", b"x,", 3)


# -- time-outs, deletion, counting


def test_a_timeout_is_an_error_of_its_own_and_leaves_the_connection_usable(tcp: Store) -> None:
    for _ in range(3):
        with pytest.raises(DistStoreError):
            tcp.wait(["missing"], SOON)
        assert tcp.add("n", 0) == 0
    assert issubclass(DistStoreError, RuntimeError)
    assert not issubclass(DistStoreError, DistNetworkError)


def test_a_missing_key_is_a_timeout_and_no_key_error(tcp: Store) -> None:
    store = tcp.clone()
    store.set_timeout(SOON)
    with pytest.raises(DistStoreError):
        store.get("missing")


def test_the_timeout_of_a_file_store_is_a_plain_runtime_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"(?i)timeout") as caught:
        FileStore(str(tmp_path / "store"), -1).wait(["missing"], SOON)
    assert not isinstance(caught.value, DistStoreError)


def test_delete(store: Store) -> None:
    store.set("k", "1")
    assert store.delete_key("k")
    assert store.delete_key("k") == isinstance(store, FileStore)  # no error, and FileStore even says that it was there
    assert not is_there(store, "k")
    assert store.compare_set("k", "", "again") == b"again"


def test_add_counts_atomically(tcp: Store) -> None:
    seen: list[int] = []

    def count() -> None:
        mine = tcp.clone()
        seen.extend(mine.add("n", 1) for _ in range(100))

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == list(range(1, 401))  # each number is given out once: the last to arrive knows it


# -- the server


def test_the_server_listens_on_its_address_only(server: StoreServer) -> None:
    assert listening_addresses(server.port) == {"127.0.0.1"}


def test_without_a_listening_socket_of_ours_it_listens_everywhere() -> None:
    """The trap that the one above avoids: host_name restricts nothing."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    assert listening_addresses(store.port) & {"0.0.0.0", "::"}


def listening_addresses(port: int) -> set[str]:
    found = set()
    for table, family in (("/proc/net/tcp", socket.AF_INET), ("/proc/net/tcp6", socket.AF_INET6)):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            if family == socket.AF_INET:
                pytest.skip("needs /proc/net/tcp")
            continue
        for line in lines:
            fields = line.split()
            address, _, number = fields[1].partition(":")
            if int(number, 16) == port and fields[3] == "0A":
                words = [bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8)]
                found.add(socket.inet_ntop(family, b"".join(words)))
    return found


def test_a_server_without_libuv_wakes_no_waiter_by_compare_set() -> None:
    """Why such a store is refused."""
    master = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, use_libuv=False)
    waiter = TCPStore("127.0.0.1", master.port, is_master=False, wait_for_workers=False, use_libuv=False)
    outcome: list[str] = []

    def wait() -> None:
        try:
            waiter.wait(["k"], timedelta(seconds=2))
            outcome.append("woken")
        except RuntimeError:
            outcome.append("not woken")

    thread = threading.Thread(target=wait)
    thread.start()
    asleep(thread)
    master.compare_set("k", "", "1")
    thread.join()
    assert outcome == ["not woken"]


def asleep(thread: threading.Thread) -> None:
    """Return once the thread sleeps in the kernel, which is to say that it waits for its reply."""
    state = Path(f"/proc/self/task/{thread.native_id}/stat")
    if not state.exists():
        pytest.skip("needs /proc")
    deadline = time.monotonic() + 30
    seen = 0
    while seen < 10:
        assert time.monotonic() < deadline
        seen = seen + 1 if state.read_text().rpartition(")")[2].split()[0] == "S" else 0
        threading.Event().wait(0.005)


@needs_native_barrier
def test_the_native_barrier_lets_all_through_at_once_and_is_for_one_use(server: StoreServer) -> None:
    store = connect(server.address)  # under a PrefixStore the barrier is not the server's command
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(store.clone().barrier, "barrier, used once", 2, timedelta(seconds=30))
        store.barrier("barrier, used once", 2, timedelta(seconds=30))
        first.result(30)
    store.barrier("barrier, used once", 2, timedelta(seconds=5))  # from now on open to anyone


@needs_native_barrier
def test_who_ran_out_of_patience_at_the_native_barrier_stays_counted(server: StoreServer) -> None:
    store = connect(server.address)
    with pytest.raises(DistStoreError):
        store.barrier("barrier, left", 2, timedelta(milliseconds=1))
    store.clone().barrier("barrier, left", 2, timedelta(seconds=30))


def let_through(store: Store, key: str, done: Callable[[Store], object], patience: timedelta) -> bool:
    """Whether somebody who waits alone in a barrier for two is let through by that, before it is complete."""
    waiter = store.clone()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(waiter.barrier, key, 2, patience)
        deadline = time.monotonic() + 30
        while not store.check([key]):  # counted, and so waiting: the server does both at once
            assert time.monotonic() < deadline
        done(store)
        try:
            waiting.result(90)
        except DistStoreError:
            return False
    return True


@needs_native_barrier
@pytest.mark.parametrize(
    ("how", "done", "passed"),
    [
        ("compare_set that fails", lambda store, key: store.compare_set(key, PROBE, PROBE), True),
        ("compare_set that succeeds", lambda store, key: store.compare_set(key, "1", "1"), True),
        ("add of nothing", lambda store, key: store.add(key, 0), True),
        ("set", lambda store, key: store.set(key, "1"), True),
        ("append", lambda store, key: store.append(key, " "), True),
        ("check", lambda store, key: store.check([key]), False),
        ("get", lambda store, key: store.get(key), False),
    ],
    ids=lambda value: value.replace(" ", "_") if isinstance(value, str) else None,
)
def test_what_lets_through_whoever_waits_in_a_native_barrier(
    server: StoreServer, how: str, done: Callable[[Store, str], object], passed: bool
) -> None:
    """Even what changes nothing does, if it may write. So nobody may look at a barrier's count by compare_set (Connection.peek)."""
    key = f"barrier, {how}"
    patience = timedelta(seconds=60 if passed else 1)
    assert let_through(connect(server.address), key, lambda store: done(store, key), patience) == passed


@needs_native_barrier
def test_a_barrier_that_is_deleted_lets_nobody_through(server: StoreServer) -> None:
    key = "barrier, deleted"
    assert not let_through(connect(server.address), key, lambda store: store.delete_key(key), timedelta(seconds=1))


# -- the interpreter lock


@pytest.mark.processes
@pytest.mark.parametrize(
    ("call", "runs"),
    [
        (lambda store: store.add("k", 1), True),
        (lambda store: store.wait(["k"], LONG), True),
        (lambda store: store.delete_key("k"), True),
        (lambda store: store.list_keys(), False),
        (lambda store: store.queue_len("k"), False),
    ],
    ids=["add", "wait", "delete_key", "list_keys", "queue_len"],
)
def test_whether_other_threads_run_while_a_reply_is_awaited(call: Callable[[Store], object], runs: bool) -> None:
    """Under list_keys and queue_len nothing of the process does: no watchdog, no signal handler. So `reply_within` has the kernel end them."""
    with start_server() as server:
        store = connect(server.address)
        if not hasattr(store, "list_keys"):
            pytest.skip("this torch's TCPStore has neither list_keys nor queue_len")
        store.set("k", "1")
        store.check(["k"])
        stopped(server.pid)
        resuming = subprocess.Popen(["sh", "-c", f"sleep 1; kill -CONT {server.pid}"])
        with ThreadPoolExecutor(1) as pool:
            called, turns = pool.submit(call, store), 0
            while not called.done():
                time.sleep(0.01)
                turns += 1
            called.result()
        assert resuming.wait() == 0
    assert (turns > 10) == runs
