"""Two environment variables that keep TCPStore from stalling, and one that keeps gRPC quiet. They must be set before torch (or gRPC) is
imported in the process.

TCPStore names the peers in its log lines by reverse-DNS look-ups, synchronously: in every wait that times out, in every constructor of a
client, and, on the server's event loop, for each new connection. With a slow resolver each costs seconds.
"""

import os
from collections.abc import MutableMapping

QUIET = {
    # No log line, no look-up: wait(10 ms) took 5 s now and then without it.
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    # What look-ups remain are bounded to a second.
    "RES_OPTIONS": "timeout:1 attempts:1",
    # Only used with etcd: else it prints a line on stderr for each fork, that is for each worker of a data loader.
    "GRPC_VERBOSITY": "ERROR",
}


def quiet_torch(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set them in `environment`, unless the user has set them already."""
    for name, value in QUIET.items():
        environment.setdefault(name, value)
