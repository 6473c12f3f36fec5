"""Real processes, really killed: restarts, marks, output, and that nothing is left behind."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from coxless.dead_marks import DeadMarker, mark_dead
from coxless.errors import CoxlessError
from coxless.output import LONGEST_LINE, Forwarder, _Stream
from coxless.rank_process import rank_environment
from coxless.server import StoreServer, start_server
from coxless.store import connect, parse_address
from coxless.supervisor import Event, Exited, Kind, Supervisor, backoff, never

pytestmark = pytest.mark.processes
PATIENCE = 60
NOW = timedelta(0)


class Watch:
    """Collects events and lines, and lets a test wait for them."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.lines: list[tuple[int, str, str]] = []
        self._changed = threading.Condition()

    def on_event(self, event: Event) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def on_line(self, rank: int, stream: str, line: str) -> None:
        with self._changed:
            self.lines.append((rank, stream, line))
            self._changed.notify_all()

    def kinds(self, rank: int | None = None) -> list[Kind]:
        return [event.kind for event in self.events if rank is None or event.rank == rank]

    def until(self, supervisor: Supervisor, condition: Callable[[], bool]) -> None:
        """Drive the run until the condition holds."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, (self.events, self.lines)
            supervisor.poll()
            with self._changed:
                self._changed.wait(0.01)

    def seen(self, line: str, times: int = 1) -> Callable[[], bool]:
        return lambda: sum(text == line for _, _, text in self.lines) >= times


def script(code: str) -> list[str]:
    # Not our interpreter's start-up in full: these ranks need no torch.
    prelude = "import os, signal, sys, threading, time\nrank = int(os.environ['RANK']); restarts = int(os.environ['TORCHELASTIC_RESTART_COUNT'])\n"
    return [sys.executable, "-S", "-c", prelude + code]


def supervise(watch: Watch, code: str, server: StoreServer, **options: Any) -> Supervisor:
    settings: dict[str, Any] = {"ranks": 3, "store": server.address, "restart": backoff(2, first=NOW)}
    return Supervisor(script(code), on_event=watch.on_event, on_line=watch.on_line, **(settings | options))


MEMBER = "print(f'{rank}.{restarts + 1}-{os.getpid()}', file=open(os.environ['COXLESS_MEMBER_FILE'], 'a'), flush=True)\n"
FOREVER = "print('here'); threading.Event().wait()\n"


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


# -- ends and restarts


def test_all_ranks_end_well(server: StoreServer) -> None:
    watch = Watch()
    assert supervise(watch, "print('hello from', rank)", server).run() == 0
    assert Counter(watch.kinds()) == {Kind.STARTED: 3, Kind.EXITED: 3, Kind.FINISHED: 3}
    assert sorted(watch.lines) == [(rank, "stdout", f"hello from {rank}") for rank in range(3)]


def test_a_rank_that_dies_is_started_again(server: StoreServer) -> None:
    watch = Watch()
    code = "os.kill(os.getpid(), 9) if rank == 1 and restarts == 0 else sys.exit(7 if rank == 2 and restarts == 0 else 0)"
    supervisor = supervise(watch, code, server)
    assert supervisor.run() == 0
    assert watch.kinds(0) == [Kind.STARTED, Kind.EXITED, Kind.FINISHED]
    assert watch.kinds(1) == [Kind.STARTED, Kind.EXITED, Kind.RESTARTED, Kind.EXITED, Kind.FINISHED]
    exits = [(event.rank, event.restarts, event.code, event.signal) for event in watch.events if event.kind is Kind.EXITED]
    assert sorted(exits, key=str) == sorted(
        [(0, 0, 0, None), (1, 0, None, 9), (1, 1, 0, None), (2, 0, 7, None), (2, 1, 0, None)], key=str
    )
    assert [event.at for event in watch.events] == sorted(event.at for event in watch.events)


def test_a_rank_that_keeps_dying_is_given_up_and_the_others_go_on(server: StoreServer) -> None:
    watch = Watch()
    assert supervise(watch, "sys.exit(rank == 1)", server).run() == 1
    assert watch.kinds(1).count(Kind.RESTARTED) == 2
    assert watch.kinds(1)[-1] is Kind.GAVE_UP
    assert watch.kinds(0)[-1] is watch.kinds(2)[-1] is Kind.FINISHED


def test_backoff_doubles_and_ends() -> None:
    policy = backoff(4, first=timedelta(seconds=1), longest=timedelta(seconds=5))
    delays = [policy(Exited(0, n, 1, None, NOW)) for n in range(6)]
    assert delays == [timedelta(seconds=n) for n in (1, 2, 4, 5)] + [None, None]
    assert never(Exited(0, 0, 1, None, NOW)) is None


def test_a_policy_decides_for_each_rank_when_it_comes_back(server: StoreServer) -> None:
    """As the demo does: kill by schedule, one rank early, one never."""
    watch = Watch()
    asked: list[Exited] = []

    def policy(exited: Exited) -> timedelta | None:
        asked.append(exited)
        return NOW if exited.rank == 0 else None

    with supervise(watch, FOREVER, server, restart=policy) as supervisor:
        watch.until(supervisor, watch.seen("here", 3))
        pid = supervisor.pid(0)
        assert supervisor.kill(0)
        assert supervisor.kill(2)
        watch.until(supervisor, watch.seen("here", 4))
        watch.until(supervisor, lambda: Kind.GAVE_UP in watch.kinds(2))
        assert supervisor.pid(2) is None
        assert not supervisor.kill(2)
        assert supervisor.pid(0) not in (None, pid)
        assert supervisor.running() == (0, 1)
    assert {exited.rank: (exited.code, exited.signal, exited.restarts) for exited in asked} == {0: (None, 9, 0), 2: (None, 9, 0)}


def test_the_environment_is_that_of_torchrun() -> None:
    own = rank_environment(
        rank=5, local_rank=1, ranks=4, world_size=8, restarts=2, max_restarts=3, store="10.0.0.1:29400", run_id="x"
    )
    assert own == {
        "RANK": "5", "LOCAL_RANK": "1", "GROUP_RANK": "1", "ROLE_RANK": "5", "ROLE_NAME": "default",
        "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "ROLE_WORLD_SIZE": "8", "GROUP_WORLD_SIZE": "2",
        "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29400", "COXLESS_STORE": "10.0.0.1:29400",
        "TORCHELASTIC_RESTART_COUNT": "2", "TORCHELASTIC_MAX_RESTARTS": "3", "TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranks": 0}, "ranks is 0: at least one is needed"),
        ({"first_rank": -1}, "first_rank is -1"),
        ({"store": "nonsense"}, "'nonsense' is not the address of a store"),
        ({"world_size": 2}, "world_size is 2: ranks 0 to 2 need at least 3"),
        ({"first_rank": 2, "world_size": 4}, "world_size is 4: ranks 2 to 4 need at least 5"),
    ],
)
def test_bad_numbers(server: StoreServer, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        supervise(Watch(), "", server, **options)


def test_a_rank_of_another_run(server: StoreServer) -> None:
    with pytest.raises(ValueError, match="rank 7 is not one of this run: it has 2 to 4"):
        supervise(Watch(), "", server, first_rank=2).kill(7)


def test_a_program_that_does_not_exist_leaves_nothing_running(server: StoreServer) -> None:
    with pytest.raises(FileNotFoundError):
        Supervisor(["/no/such/program"], ranks=2, store=server.address).run()


# -- dead marks


def heartbeats(server: StoreServer, tokens: list[str]) -> list[bytes]:
    store = connect(server.address)
    return [store.compare_set(f"heartbeat_{token}", "?probe?", "?probe?") for token in tokens]


def test_mark_dead(server: StoreServer) -> None:
    store = connect(server.address)
    store.set("heartbeat_3.1-aa", "17 42 00:00")
    mark_dead(store, ["3.1-aa", "3.2-bb"])
    assert heartbeats(server, ["3.1-aa", "3.2-bb", "3.3-cc"]) == [b"dead", b"dead", b"?probe?"]


def test_a_rank_that_is_killed_is_marked_dead(server: StoreServer) -> None:
    watch = Watch()
    with supervise(watch, MEMBER + MEMBER.replace("+ 1", "+ 11") + FOREVER, server, restart=never) as supervisor:
        watch.until(supervisor, watch.seen("here", 3))
        pid = supervisor.pid(1)
        supervisor.kill(1)
        watch.until(supervisor, lambda: Kind.MARKED_DEAD in watch.kinds(1))
        tokens = [f"1.1-{pid}", f"1.11-{pid}"]
        assert heartbeats(server, [*tokens, f"0.1-{supervisor.pid(0)}"]) == [b"dead", b"dead", b"?probe?"]
    assert [event.detail for event in watch.events if event.kind is Kind.MARKED_DEAD][:1] == [", ".join(tokens)]


def test_a_last_beat_after_the_mark_is_overwritten(server: StoreServer) -> None:
    """The beat may have waited in the dead process's socket."""
    store = connect(server.address)
    marked = threading.Event()

    def on_marked(rank: int, tokens: tuple[str, ...]) -> None:
        store.set("heartbeat_4.1-aa", "late")
        marked.set()

    marker = DeadMarker(server.address, on_marked)
    marker.mark(4, ["4.1-aa"])
    assert marked.wait(PATIENCE)
    eventually(lambda: store.get("heartbeat_4.1-aa") == b"dead")
    marker.close()


def test_marks_survive_a_restart_of_the_store() -> None:
    with start_server() as own:
        marked: list[tuple[int, tuple[str, ...]]] = []
        marker = DeadMarker(own.address, lambda rank, tokens: marked.append((rank, tokens)))
        marker.mark(1, ["1.1-aa"])
        eventually(lambda: len(marked) == 1)
        own.kill()
        marker.mark(2, ["2.1-bb"])
        own.start()
        eventually(lambda: len(marked) == 2)
        assert connect(own.address).get("heartbeat_2.1-bb") == b"dead"
        marker.close()


def test_a_token_cut_short_is_not_marked(server: StoreServer) -> None:
    watch = Watch()
    code = "open(os.environ['COXLESS_MEMBER_FILE'], 'w').write('0.61-aa\\n0.62-b'); sys.exit(1)"
    assert supervise(watch, code, server, ranks=1, restart=never).run() == 1
    eventually(lambda: heartbeats(server, ["0.61-aa", "0.62-b"]) == [b"dead", b"?probe?"])


def test_a_rank_that_ends_well_without_leaving_the_crew_is_marked_dead_and_one_that_left_is_not(server: StoreServer) -> None:
    watch = Watch()
    connect(server.address).set("heartbeat_0.81-aa", "left")
    code = "open(os.environ['COXLESS_MEMBER_FILE'], 'w').write('0.81-aa\\n0.82-bb\\n')"
    assert supervise(watch, code, server, ranks=1).run() == 0
    eventually(lambda: heartbeats(server, ["0.82-bb"]) == [b"dead"])
    assert heartbeats(server, ["0.81-aa"]) == [b"left"]
    assert [event.detail for event in watch.events if event.kind is Kind.MARKED_DEAD] in (
        [],
        ["0.82-bb"],
    )  # the run may be over before


def test_a_second_mark_does_not_bring_back_a_heartbeat_that_was_deleted(server: StoreServer) -> None:
    store = connect(server.address)
    assert mark_dead(store, ["9.1-aa", "9.2-bb"]) == ("9.1-aa", "9.2-bb")
    store.delete_key("heartbeat_9.1-aa")
    store.set("heartbeat_9.2-bb", "17 42 0.000")
    assert mark_dead(store, ["9.1-aa", "9.2-bb"], again=True) == ("9.2-bb",)
    assert heartbeats(server, ["9.1-aa", "9.2-bb"]) == [b"?probe?", b"dead"]


# -- output


def test_a_flood_neither_blocks_nor_mixes_lines(server: StoreServer) -> None:
    watch = Watch()
    code = "for n in range(5000): print(f'{rank}:{n}:' + 'x' * (n % 300), file=(sys.stderr if n % 2 else sys.stdout))"
    assert supervise(watch, code, server).run() == 0
    assert len(watch.lines) == 3 * 5000
    for rank in range(3):
        for parity, stream in enumerate(("stdout", "stderr")):
            got = [line for r, s, line in watch.lines if (r, s) == (rank, stream)]
            assert got == [f"{rank}:{n}:" + "x" * (n % 300) for n in range(parity, 5000, 2)]


def test_lines_printed_in_parts_come_whole(server: StoreServer) -> None:
    watch = Watch()
    code = "for part in ('a', 'b', 'c\\r\\n', 'bar 1\\rbar 2\\r', 'no end'): os.write(1, part.encode())"
    assert supervise(watch, code, server, ranks=1).run() == 0
    assert [line for _, _, line in watch.lines] == ["abc", "bar 1", "bar 2", "no end"]


def test_a_line_without_an_end_is_cut() -> None:
    with open(os.devnull, "rb") as pipe:
        stream = _Stream(0, "stdout", pipe)
        assert stream.lines(b"x" * LONGEST_LINE + b"y\r") == [b"x" * LONGEST_LINE]
        assert stream.lines(b"\nz") == [b"y"]
        assert stream.rest() == [b"z"]


def test_a_reader_that_never_reads_blocks_no_rank(server: StoreServer) -> None:
    """Our own output hangs; the ranks print more than a pipe holds and end all the same."""
    hanging = threading.Event()

    def hang(rank: int, stream: str, line: str) -> None:
        hanging.wait(PATIENCE)

    watch = Watch()
    supervisor = supervise(watch, "print('x' * 10_000_000)", server)
    supervisor._on_line = hang
    try:
        supervisor.start()
        watch.until(supervisor, supervisor.poll)
    finally:
        hanging.set()
        supervisor.stop()
    assert supervisor.exit_code == 0


def test_the_prefix(capfd: pytest.CaptureFixture[str]) -> None:
    reading, writing = os.pipe()
    forwarder = Forwarder()
    forwarder.follow(2, "stdout", os.fdopen(reading, "rb"))
    os.write(writing, b"one\ntwo\n")
    os.close(writing)
    forwarder.close()
    assert capfd.readouterr().out == "[rank 2] one\n[rank 2] two\n"


# -- nothing is left behind


STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN); " + FOREVER


def test_a_rank_that_ignores_sigterm_is_killed_after_the_grace_period(server: StoreServer) -> None:
    watch = Watch()
    with supervise(watch, STUBBORN, server, grace=timedelta(milliseconds=50)) as supervisor:
        watch.until(supervisor, watch.seen("here", 3))
        pids = [supervisor.pid(rank) for rank in range(3)]
    assert all(pid is not None and gone(pid) for pid in pids)
    assert [event.signal for event in watch.events if event.kind is Kind.EXITED] == [9, 9, 9]
    assert supervisor.exit_code == 1


def test_sigterm_lets_a_rank_end_in_its_own_way_even_a_stopped_one(server: StoreServer) -> None:
    watch = Watch()
    code = "signal.signal(signal.SIGTERM, lambda *_: (print('bye'), sys.exit(0))); " + FOREVER
    with supervise(watch, code, server, ranks=1) as supervisor:
        watch.until(supervisor, watch.seen("here"))
        supervisor.kill(0, signal.SIGSTOP)
    assert watch.lines[-1] == (0, "stdout", "bye")


def test_what_a_dead_rank_started_dies_with_it(server: StoreServer) -> None:
    watch = Watch()
    code = "import subprocess; p = subprocess.Popen(['sleep', '1000']); print(p.pid); " + FOREVER
    with supervise(watch, code, server, ranks=1, restart=never) as supervisor:
        watch.until(supervisor, watch.seen("here"))
        worker = int(watch.lines[0][2])
        assert not gone(worker)
        supervisor.kill(0)
        watch.until(supervisor, lambda: Kind.GAVE_UP in watch.kinds())
        eventually(lambda: gone(worker))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_ends_everything_on_a_signal(number: signal.Signals, code: int, tmp_path: Path) -> None:
    program = tmp_path / "train.py"
    program.write_text("import os, threading\nprint('pid', os.getpid())\nthreading.Event().wait()\n")
    command = [sys.executable, "-m", "coxless", "run", "--ranks", "2", "--grace", "5", str(program)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        pids = [int(process.stdout.readline().rpartition(" ")[2]) for _ in range(2)]
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == code
    assert "Traceback" not in out + err
    assert all(gone(pid) for pid in pids)


def test_nothing_is_left_of_a_run_in_the_temporary_folder(
    server: StoreServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    watch = Watch()
    with supervise(watch, MEMBER + FOREVER, server) as supervisor:
        watch.until(supervisor, watch.seen("here", 3))
        supervisor.kill(1)
        watch.until(supervisor, watch.seen("here", 4))
        (folder,) = tmp_path.iterdir()
        assert len(list(folder.iterdir())) == 3
    assert list(tmp_path.iterdir()) == []


def test_when_the_supervisor_is_killed_its_ranks_and_its_store_die(tmp_path: Path) -> None:
    """What is left is one folder, empty but for who the ranks have been."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    program = tmp_path / "train.py"
    program.write_text("import os, threading\nprint('pid', os.getpid(), os.environ['COXLESS_STORE'])\nthreading.Event().wait()\n")
    command = [sys.executable, "-m", "coxless", "run", "--ranks", "2", str(program)]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment) as process:
        assert process.stdout is not None
        words = [process.stdout.readline().split() for _ in range(2)]
        connection = socket.create_connection(parse_address(words[0][-1]))
        process.kill()
    eventually(lambda: all(gone(int(pid)) for *_, pid, _ in words))
    with connection:
        connection.settimeout(PATIENCE)
        assert connection.recv(1) == b""
    assert [path.name.startswith("coxless-run-") for path in temporary.iterdir()] == [True]


def test_a_rank_has_the_signals_of_any_program(server: StoreServer) -> None:
    """Python ignores SIGPIPE; a program that is none would never end when its reader does."""
    watch = Watch()
    Supervisor(["sh", "-c", "grep SigIgn /proc/self/status"], ranks=1, store=server.address, on_line=watch.on_line).run()
    ignored = int(watch.lines[0][2].split()[1], 16)
    # Others may have been ignored before Python began, and are then handed on as they are.
    assert not any(ignored >> (number - 1) & 1 for number in (signal.SIGPIPE, signal.SIGXFSZ))


def test_a_listener_that_fails_does_not_end_the_run(server: StoreServer, caplog: pytest.LogCaptureFixture) -> None:
    def faulty(event: Event) -> None:
        raise RuntimeError("faulty")

    supervisor = Supervisor(script("pass"), ranks=1, store=server.address, on_event=faulty)
    assert supervisor.run() == 0
    assert "the on_event callback failed" in caplog.text


# -- the store


def test_a_store_of_its_own_is_started_again_on_the_same_port_when_it_dies() -> None:
    watch = Watch()
    with Supervisor(script(FOREVER), ranks=1, on_event=watch.on_event, on_line=watch.on_line) as supervisor:
        watch.until(supervisor, watch.seen("here"))
        address, pid = supervisor.store_address, supervisor.store_pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        watch.until(supervisor, lambda: Kind.STORE_RESTARTED in watch.kinds())
        assert supervisor.store_address == address
        assert supervisor.store_pid != pid
        connect(address)
        last = supervisor.store_pid
    assert last is not None
    assert gone(last)


def test_a_given_store_that_is_not_there_is_one_error_and_no_rank_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch()
    with start_server() as lost:
        address = lost.address
    import coxless.supervisor as module

    monkeypatch.setattr(module, "connect", lambda address: connect(address, timeout=timedelta(milliseconds=200)))
    with pytest.raises(CoxlessError, match=f"no store at {address}"):
        Supervisor(script(""), ranks=2, store=address, on_event=watch.on_event).run()
    assert watch.events == []
