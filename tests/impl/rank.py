"""The process that `tests.impl.crews.Process` starts: one rank, which prints a JSON line for each iteration.

With "stepwise" it waits for a line on stdin before each advance: "ok", "fail", or "end" to leave instead.
"""

import json
import sys
import time
from datetime import timedelta

import coxless


def main() -> int:
    arguments = json.loads(sys.argv[1])
    durations = {
        name: timedelta(seconds=arguments[name])
        for name in ("heartbeat_interval", "heartbeat_timeout", "patience", "join_timeout", "timeout")
        if name in arguments
    }
    try:
        with coxless.join(
            arguments["address"],
            rank=arguments["rank"],
            world_size=arguments["size"],
            min_ranks=arguments.get("min_ranks", 1),
            **durations,
        ) as crew:
            for iteration in crew.iterations(until=arguments.get("until")):
                say(
                    iteration=iteration.number,
                    epoch=iteration.epoch,
                    ranks=[member.rank for member in iteration.participants],
                    committed=iteration.committed,
                    holds=iteration.holds,
                    rejoined=iteration.rejoined,
                    winner=None if iteration.winner is None else iteration.winner.rank,
                    member=str(iteration.me),
                )
                if arguments.get("stepwise"):
                    command = sys.stdin.readline().strip()
                    if command == "end":
                        break
                    crew.vote(command != "fail")
    except coxless.CoxlessError as error:
        say(error=type(error).__name__, message=str(error))
        return 3
    assert crew.iteration is not None
    say(end=crew.iteration.number)
    return 0


def say(**fields: object) -> None:
    print(json.dumps({"at": time.monotonic(), **fields}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
