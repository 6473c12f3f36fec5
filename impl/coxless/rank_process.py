"""One rank's process under the supervisor, from its start to the end of everything that it started."""

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from .address import TcpAddress, is_local, parse
from .output import Forwarder
from .records import parse_member
from .torch_environment import quiet_torch

logger = logging.getLogger(__name__)


def rank_environment(
    *, rank: int, local_rank: int, ranks: int, world_size: int, restarts: int, max_restarts: int, store: str, run_id: str
) -> dict[str, str]:
    """What torchrun would set, and COXLESS_STORE.

    MASTER_ADDR and MASTER_PORT are the store's, as torchrun's are those of its agent's store: init_process_group("env://") works with
    it, as a client, because of TORCHELASTIC_USE_AGENT_STORE. The three are left as they were when the store is no TCPStore: then it
    is init_process_group(store=coxless.store.store_from_env(), …).
    """
    where = parse(store)
    master = {}
    if isinstance(where, TcpAddress):
        master = {"MASTER_ADDR": where.host, "MASTER_PORT": str(where.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    return {
        **master,
        "RANK": str(rank),
        "LOCAL_RANK": str(local_rank),
        "ROLE_RANK": str(rank),
        "GROUP_RANK": str((rank - local_rank) // ranks),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(ranks),
        "ROLE_WORLD_SIZE": str(world_size),
        "GROUP_WORLD_SIZE": str(-(-world_size // ranks)),
        "ROLE_NAME": "default",
        "TORCHELASTIC_RESTART_COUNT": str(restarts),
        "TORCHELASTIC_MAX_RESTARTS": str(max_restarts),
        "TORCHELASTIC_RUN_ID": run_id,
        "COXLESS_STORE": store,
    }


# What a rank does before it becomes the command: it asks the kernel to be killed when its parent dies, and sees whether that has happened
# already. Not a preexec_fn, which is unsafe in a program with threads. Python has set SIGPIPE and SIGXFSZ aside; the command gets them back.
_LEASH = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    os.kill(os.getpid(), signal.SIGKILL)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
os.execvp(sys.argv[2], sys.argv[2:])
"""


def leashed(command: Sequence[str]) -> list[str]:
    """The command, but it dies with the thread that starts it (Linux; elsewhere the command as it is).

    Raises FileNotFoundError if there is no such program.
    """
    if shutil.which(command[0]) is None:
        raise FileNotFoundError(f"there is no program {command[0]!r}")
    if not sys.platform.startswith("linux"):
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _LEASH, str(os.getpid()), *command]


class RankProcess:
    """A process in a session of its own, so that all that it starts can be ended with it.

    torch.distributed.elastic.multiprocessing is not used: its contexts end every process as soon as one fails and have no way to start
    one again, they install signal handlers in whatever program starts them, and they tail log files on disk. What is
    kept of it are the sessions, and SIGTERM before SIGKILL.
    """

    def __init__(
        self, rank: int, command: Sequence[str], environment: Mapping[str, str], forwarder: Forwarder, folder: Path
    ) -> None:
        """`folder` is where the process names the members that it is."""
        self.rank = rank
        self.started = time.monotonic()
        self.returncode: int | None = None
        # A signal must not be sent to a number that the kernel has given to somebody else meanwhile.
        self._reaping = threading.Lock()
        handle, name = tempfile.mkstemp(prefix=f"rank{rank}-", suffix=".members", dir=folder)
        os.close(handle)
        self._member_file = Path(name)
        full = {**os.environ, "PYTHONUNBUFFERED": "1", **environment, "COXLESS_MEMBER_FILE": name}
        quiet_torch(full)
        if sys.platform.startswith("linux") and is_local(full.get("COXLESS_STORE", "")):
            # All ranks are on this machine: gloo need not find an interface by the host's name, which often has no address.
            full.setdefault("GLOO_SOCKET_IFNAME", "lo")
        try:
            self._process = subprocess.Popen(
                leashed(command),
                env=full,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except BaseException:
            self._member_file.unlink()
            raise
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        forwarder.follow(rank, "stdout", self._process.stdout)
        forwarder.follow(rank, "stderr", self._process.stderr)

    @property
    def pid(self) -> int:
        """Process id, also of its group and session."""
        return self._process.pid

    def poll(self) -> int | None:
        """None while it runs, then the exit code, or minus the signal. With its end everything in its process group is killed."""
        with self._reaping:
            if self.returncode is None and self._has_ended():
                # Before it is reaped: until then no other process or group can have its number.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, signal.SIGKILL)
                self.returncode = self._process.wait()
            return self.returncode

    def _has_ended(self) -> bool:
        if not hasattr(os, "waitid"):  # macOS before Python 3.13
            return self._process.poll() is not None
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def signal(self, number: int, *, group: bool = False) -> bool:
        """Send a signal to the process, or to its whole group; False if it has ended."""
        with self._reaping:
            if self.returncode is not None:
                return False
            with contextlib.suppress(ProcessLookupError, PermissionError):
                (os.killpg if group else os.kill)(self.pid, number)
                return True
            return False

    def tokens(self) -> list[str]:
        """The members that this process has been in the crew; complete once it has ended."""
        try:
            lines = self._member_file.read_bytes().decode("ascii", errors="replace").split("\n")
        except OSError as error:
            logger.warning("cannot read which members rank %d has been: %s", self.rank, error)
            return []
        tokens = [line for line in lines[:-1] if line]  # without its newline, a line was cut short by the end
        foreign = [token for token in tokens if not self._is_own(token)]
        if foreign:
            logger.warning("rank %d names itself %.100r, which is no member that it can be", self.rank, foreign[0])
        return [token for token in tokens if token not in foreign]

    def _is_own(self, token: str) -> bool:
        try:
            return parse_member(token).rank == self.rank
        except ValueError:
            return False

    def forget(self) -> None:
        """Remove the file in which it named its members."""
        self._member_file.unlink(missing_ok=True)
