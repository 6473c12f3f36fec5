"""Every place that takes an address takes each of its forms: join, the environment, the supervisor and its marks, the command line."""

import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import FileStore

import coxless
from coxless.errors import StoreUnreachableError
from coxless.rank_process import rank_environment
from coxless.store import connect, store_from_env
from coxless.stores import as_etcd
from coxless.supervisor import Event, Kind, Supervisor, backoff

from ...conftest import NewRun
from ..crews import in_threads

TRAIN = """
import os, signal
import coxless
from datetime import timedelta
with coxless.join_from_env(heartbeat_timeout=timedelta(minutes=5)) as crew:
    first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    for iteration in crew.iterations(until=12):
        if crew.rank == 1 and iteration.number == 4 and first:
            os.kill(os.getpid(), signal.SIGKILL)
    print("end", crew.iteration.number, os.environ.get("MASTER_ADDR"), flush=True)
"""


def environment(store: str) -> dict[str, str]:
    return rank_environment(rank=0, local_rank=0, ranks=1, world_size=1, restarts=0, max_restarts=0, store=store, run_id="x")


@pytest.mark.parametrize("store", ["etcd://h1,h2/run", "etcd://u:p@h1/run", "file:///a/b"])
def test_a_rank_gets_the_address_as_it_is_and_no_master_where_there_is_none(store: str) -> None:
    given = environment(store)
    assert given["COXLESS_STORE"] == store
    assert not {"MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_USE_AGENT_STORE"} & set(given)


def test_an_ipv6_server_is_its_ranks_master() -> None:
    given = environment("tcp://[::1]:29400")
    assert (given["MASTER_ADDR"], given["MASTER_PORT"]) == ("::1", "29400")


@pytest.fixture(params=["etcd", "file"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return f"file://{tmp_path}/store"
    made: str = request.getfixturevalue("new_run")()
    return made


def test_a_crew_by_address(address: str) -> None:
    def run(rank: int) -> int:
        with coxless.join(address, rank=rank, world_size=2) as crew:
            for iteration in crew.iterations(until=6):
                assert iteration.world_size == 2
            assert crew.iteration is not None
            return crew.iteration.number

    assert in_threads(2, run) == [7, 7]


def test_the_store_of_the_environment(address: str) -> None:
    connect(address).set("mine", "yes")
    assert store_from_env(environment={"COXLESS_STORE": address}).get("mine") == b"yes"


@pytest.mark.processes
def test_the_supervisor_and_its_marks(address: str, tmp_path: Path) -> None:
    """Without the mark the heartbeat timeout of five minutes would have to pass."""
    events: list[Event] = []
    lines: list[str] = []
    program = tmp_path / "train.py"
    program.write_text(TRAIN)
    supervisor = Supervisor(
        [sys.executable, str(program)],
        ranks=3,
        store=address,
        restart=backoff(1, first=timedelta(seconds=0.1)),
        on_event=events.append,
        on_line=lambda rank, stream, line: lines.append(line),
    )
    began = time.monotonic()
    assert supervisor.run() == 0, lines
    assert time.monotonic() - began < 100
    kinds = [event.kind for event in events]
    assert Kind.MARKED_DEAD in kinds
    assert kinds.count(Kind.FINISHED) == 3
    assert Kind.STORE_STARTED not in kinds
    ends = [line.split() for line in lines if line.startswith("end")]
    assert len(ends) == 3
    assert all(int(number) >= 13 and master == "None" for _, number, master in ends)  # who came back last may have come alone


@pytest.mark.processes
@pytest.mark.parametrize("by", ["option", "environment"])
def test_coxless_run(new_run: NewRun, tmp_path: Path, by: str) -> None:
    address = new_run()
    program = tmp_path / "train.py"
    program.write_text(
        "import coxless\nwith coxless.join_from_env() as crew:\n    for i in crew.iterations(until=3): pass\nprint('end', crew.store)\n"
    )
    command = [
        sys.executable,
        "-m",
        "coxless",
        "run",
        "--ranks",
        "2",
        *(["--store", address] if by == "option" else []),
        str(program),
    ]
    given = {**os.environ, **({"COXLESS_STORE": address} if by == "environment" else {})}
    ended = subprocess.run(command, env=given, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    etcd = as_etcd(connect(address))
    assert etcd is not None
    assert sorted(ended.stdout.splitlines()) == [f"[rank {rank}] end EtcdStore('{etcd.etcd}')" for rank in range(2)]


@pytest.mark.processes
def test_two_launchers_make_one_crew(new_run: NewRun, tmp_path: Path) -> None:
    """As on two machines: each starts its own ranks, and neither runs a store."""
    program = tmp_path / "train.py"
    program.write_text(
        "import coxless\nwith coxless.join_from_env() as crew:\n    for i in crew.iterations(until=5): pass\n"
        "    print('world', i.world_size, 'of', crew.world.world_size)\n"
    )
    address = new_run()
    common = [sys.executable, "-m", "coxless", "run", "--ranks", "2", "--world-size", "4", "--store", address, "--quiet"]
    nodes = [
        subprocess.Popen([*common, "--first-rank", str(2 * node), str(program)], stdout=subprocess.PIPE, text=True)
        for node in (0, 1)
    ]
    told = [node.communicate(timeout=120)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0]
    assert sorted("".join(told).splitlines()) == [f"[rank {rank}] world 4 of 4" for rank in range(4)]


@pytest.mark.processes
def test_under_torchrun_the_address_in_the_environment_counts(new_run: NewRun, tmp_path: Path) -> None:
    program = tmp_path / "train.py"
    program.write_text(
        "import coxless\nwith coxless.join_from_env() as crew: print('store', type(crew.store).__name__, flush=True)\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(program)]
    environment = {**os.environ, "COXLESS_STORE": new_run()}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == ["store", "EtcdStore"] * 2


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("etcd://127.0.0.1:1", "'etcd://127.0.0.1:1' is not the address of a store: '' names no run"),
        ("etcd://u:secret@127.0.0.1:1/r?lease=x", "'etcd://127.0.0.1:1/r' is not the address of a store: lease=x must be"),
        ("file://here", "a file is named by its whole path"),
        ("redis://h:1", "it has the form host:port"),
        ("etcd://u:secret@127.0.0.1:1/r", "no member of etcd://127.0.0.1:1/r answered within 10 s: "),
        ("file:///nowhere/at/all", "there is no folder /nowhere/at for the store file:///nowhere/at/all"),
    ],
)
def test_a_wrong_address_is_one_clear_sentence_at_the_command_line(address: str, message: str) -> None:
    command = [sys.executable, "-m", "coxless", "run", "--ranks", "2", "--store", address, __file__]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "secret" not in ended.stderr


def test_a_file_in_a_folder_that_is_not_there() -> None:
    with pytest.raises(StoreUnreachableError, match="make it first, where all ranks see it"):
        connect("file:///nowhere/at/all")


def test_a_file_store_begins_with_the_time_limit_that_was_given(tmp_path: Path) -> None:
    store = connect(f"file://{tmp_path}/store", timeout=timedelta(seconds=7))
    assert isinstance(store, FileStore)
    assert store.timeout == timedelta(seconds=7)
