"""One soak: starts the store, the proxy and the ranks, does to them what the schedule says, and ends everything that it started."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from coxless.dead_marks import DeadMarker
from coxless.output import Forwarder
from coxless.rank_process import RankProcess, rank_environment
from coxless.recording import Recorder
from coxless.server import StoreServer
from coxless.store import connect

from .history import Done, History, Life, lines_of
from .proxy import Proxy
from .schedule import HEARTBEAT_TIMEOUT, RANKS, Fault, Schedule

FRESH = 2.0  # seconds: a rank that has begun an iteration within them takes part
SETTLE = 45.0  # seconds that a fault waits for its conditions before it is left out
LAST_STEPS = 150
LONGEST_END = 120.0
RECORDED = 1 << 30  # bytes of each process


class Place:
    """A rank, whatever process it has at the moment."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.restarts = -1
        self.process: RankProcess | None = None
        self.restart_at: float | None = 0.0
        self.fault = ""
        self.next_fault = ""
        self.marked = True
        self.thaw_at: float | None = None
        self.silences: list[tuple[float, float]] = []
        self.killed = False
        self.finished = False
        self.seen = 0.0  # when its process last began an iteration
        self.iteration = 0
        self.position = 0
        self._read = 0

    def look(self, path: Path) -> None:
        """Reads what is new in its log."""
        if not path.exists():
            return
        with path.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in reversed(whole.splitlines()):
            if b'"event": "step"' in line:
                fields = json.loads(line)
                self.seen, self.iteration, self.position = fields["t"], fields["iteration"], fields["position"]
                break

    def forget(self) -> None:
        self.seen, self._read, self.silences, self.killed, self.thaw_at = 0.0, 0, [], False, None


class Soak:
    def __init__(self, schedule: Schedule, folder: Path, tell: Callable[[str], None] = lambda line: None) -> None:
        self.schedule, self.folder, self._tell = schedule, folder, tell
        self.places = [Place(rank) for rank in range(RANKS)]
        self.lives: list[Life] = []
        self.done: list[Done] = []
        self.left_out: list[Fault] = []
        self._losses: list[tuple[float, float]] = []
        self._store_back: threading.Thread | None = None
        self._random = random.Random(schedule.seed)
        self._over = False
        """All are told where to stop: who ends now is not started again, since it would find nobody who holds the state."""

    def run(self) -> History:
        """The whole run. Whatever happens, nothing that it started is left."""
        recorder = Recorder(self.folder / "recording", "supervisor", limit=RECORDED)
        self._event = recorder.event
        self._members = self.folder / "members"
        self._members.mkdir()
        keys: int | None = None
        with contextlib.ExitStack() as stack:
            self._output = stack.enter_context((self.folder / "output.txt").open("a", encoding="utf-8"))
            self._server = StoreServer(log_file=self.folder / "store.txt")
            stack.callback(self._server.close)
            self._server.start()
            self._proxy = Proxy(RANKS, self._server.host, self._server.port)
            stack.callback(self._proxy.close)
            self._forwarder = Forwarder(self._line)
            stack.callback(self._forwarder.close)
            self._marker = DeadMarker(
                self._server.address, lambda rank, names: recorder.event("marked_dead", rank, detail=", ".join(names))
            )
            stack.callback(self._marker.close, write=False)
            stack.callback(self._end_all)
            self._do_all()
            if self._finish():
                keys = connect(self._server.address).num_keys()
        return History(self.lives, self.done, keys, time.monotonic(), tuple(self._losses))

    def _line(self, rank: int, stream: str, line: str) -> None:
        self._output.write(f"{time.monotonic():.2f} [rank {rank}] {line}\n")
        self._output.flush()

    # -- the schedule

    def _do_all(self) -> None:
        began = time.monotonic()
        end = began + self.schedule.minutes * 60
        waiting, due_since = deque(self.schedule.faults), 0.0
        deadline = end + max(60.0, 0.5 * (end - began))
        while (waiting or time.monotonic() < end) and time.monotonic() < deadline:
            self._look()
            now = time.monotonic()
            if waiting and now - began >= waiting[0].at:
                due_since = due_since or now
                if self._may(waiting[0]):
                    self._do(waiting.popleft())
                    due_since = 0.0
                elif now - due_since > SETTLE:
                    self.left_out.append(waiting.popleft())
                    due_since = 0.0
            self._tell(
                f"{now - began:5.0f} s  iteration {max(p.iteration for p in self.places)}  "
                f"{len(self.schedule.faults) - len(waiting)} of {len(self.schedule.faults)} faults"
            )
            time.sleep(0.03)
        self.left_out += waiting

    def _takes_part(self, place: Place) -> bool:
        alive = place.process is not None and not place.killed and place.thaw_at is None
        return alive and time.monotonic() - place.seen < FRESH

    def _pending(self, place: Place) -> bool:
        """Whether its process may still kill itself."""
        point, _, number = place.fault.partition("@")
        return bool(point) and place.iteration <= int(number) + 1

    def _all_well(self) -> bool:
        return all(self._takes_part(place) and not self._pending(place) for place in self.places)

    def _store_is_back(self) -> bool:
        return self._store_back is None or (not self._store_back.is_alive() and self._all_well())

    def _may(self, fault: Fault) -> bool:
        if not self._store_is_back():
            return False
        self._store_back = None
        if fault.kind == "store":
            # The clause of docs/protocol.md: nobody is stopped, has been left out without knowing, or is about to die.
            for place in self.places:
                self._thaw(place)
            return self._all_well()
        place = self.places[fault.rank]
        if place.process is None or place.killed or place.thaw_at is not None:
            return False
        if fault.kind == "cut":
            return self._takes_part(place)
        # One that holds the state stays, or the training would have to begin anew.
        return any(self._takes_part(other) and not self._pending(other) for other in self.places if other is not place)

    def _do(self, fault: Fault) -> None:
        now = time.monotonic()
        if fault.kind == "store":
            self._server.kill()
            self._event("store_died", None)
            self.done.append(Done(now, "store"))
            self._store_back = threading.Thread(target=self._revive, args=(now, fault.lasts), daemon=True)
            self._store_back.start()
            return
        place = self.places[fault.rank]
        assert place.process is not None
        if fault.kind == "cut":
            count = self._proxy.cut(place.rank, fault.detail)
            place.silences.append((now, now + HEARTBEAT_TIMEOUT))
            self.done.append(Done(now, "cut", place.rank, count))
        elif fault.kind == "stop":
            place.process.signal(signal.SIGSTOP)
            place.thaw_at = now + fault.lasts
            place.silences.append((now, place.thaw_at))
            self.done.append(Done(now, "long stop" if fault.lasts > HEARTBEAT_TIMEOUT else "stop", place.rank))
        else:
            marked, _, point = fault.detail.partition("+")
            place.marked, place.killed = marked == "marked", True
            name, _, number = point.partition("@")
            ahead = int(number or 0)
            place.next_fault = f"{name}@{max(p.iteration for p in self.places) + ahead if ahead else 0}" if point else ""
            place.restart_at = now + fault.lasts
            place.process.signal(signal.SIGKILL, group=True)
            self.done.append(Done(now, "kill", place.rank))

    def _revive(self, since: float, pause: float) -> None:
        time.sleep(pause)
        self._server.start(timeout=timedelta(seconds=60))
        self._event("store_restarted", None)
        self._losses.append((since, time.monotonic()))

    # -- the ranks

    def _look(self) -> None:
        now = time.monotonic()
        for place in self.places:
            if place.process is not None:
                place.look(self._log(place))
                if place.thaw_at is not None and now >= place.thaw_at:
                    self._thaw(place)
                self._gather(place, place.process)
            elif not place.finished and place.restart_at is not None and now >= place.restart_at:
                self._launch(place)

    def _thaw(self, place: Place) -> None:
        if place.thaw_at is not None and place.process is not None:
            place.process.signal(signal.SIGCONT)
            # It is silent until its next heartbeat, and it has been seen so by then.
            place.silences[-1] = (place.silences[-1][0], time.monotonic() + HEARTBEAT_TIMEOUT)
        place.thaw_at = None

    def _log(self, place: Place) -> Path:
        return self.folder / f"rank{place.rank}.{place.restarts}.jsonl"

    def _launch(self, place: Place) -> None:
        place.restarts += 1
        place.restart_at = None
        place.forget()
        place.fault, place.next_fault = place.next_fault, ""
        environment = rank_environment(
            rank=place.rank,
            local_rank=place.rank,
            ranks=RANKS,
            world_size=RANKS,
            restarts=place.restarts,
            max_restarts=1 << 20,
            store=f"127.0.0.1:{self._proxy.ports[place.rank]}",
            run_id="soak",
        )
        environment |= {
            "OMP_NUM_THREADS": "1",
            "PYTHONFAULTHANDLER": "1",  # should one abort, its output says where
            "SOAK_FOLDER": str(self.folder),
            "SOAK_HEARTBEAT_TIMEOUT": str(HEARTBEAT_TIMEOUT),
            "COXLESS_TRACE": str(self.folder / "recording"),
            "COXLESS_TRACE_LIMIT": str(RECORDED),
            "COXLESS_FAULT": place.fault,
        }
        if not place.fault:
            del environment["COXLESS_FAULT"]
        command = [sys.executable, "-m", "bench.soak.rank"]
        place.process = RankProcess(place.rank, command, environment, self._forwarder, self._members)
        self._event("restarted" if place.restarts else "started", place.rank, pid=place.process.pid, restarts=place.restarts)

    def _gather(self, place: Place, process: RankProcess) -> None:
        code = process.poll()
        if code is None:
            return
        now = time.monotonic()
        self._event(
            "exited",
            place.rank,
            pid=process.pid,
            restarts=place.restarts,
            code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
        )
        if place.marked or code >= 0:
            self._marker.mark(place.rank, process.tokens())
        process.forget()
        if code == -signal.SIGKILL and not place.killed:
            self.done.append(Done(now, "self-kill", place.rank))
        self.lives.append(Life(place.rank, place.restarts, lines_of(self._log(place)), now, code, tuple(place.silences)))
        place.process, place.marked, place.fault = None, True, ""
        place.finished = code == 0
        if place.restart_at is None and not self._over:
            place.restart_at = now + self._random.uniform(0, 1)

    # -- the end

    def _finish(self) -> bool:
        """Lets all come back, agree on the last position and finish; whether they all did."""
        deadline = time.monotonic() + LONGEST_END
        for place in self.places:
            self._thaw(place)
        while not (self._store_is_back() and self._all_well()):
            self._look()
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        self._over = True
        temporary = self.folder / "stop.new"
        temporary.write_text(str(max(place.position for place in self.places) + LAST_STEPS))
        os.replace(temporary, self.folder / "stop")
        while not all(place.finished for place in self.places):
            self._look()
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def _end_all(self) -> None:
        for place in self.places:
            if place.process is not None:
                place.process.signal(signal.SIGKILL, group=True)
                place.killed = True
        for place in self.places:
            while place.process is not None:
                self._gather(place, place.process)
                time.sleep(0.01)
        if self._store_back is not None:
            self._server.abort_start()
            self._store_back.join(90)
