"""Makes of this torch one that cannot do what torch 2.6 could not; imported by every Python whose PYTHONPATH names this folder."""

import importlib.metadata

import torch.distributed as dist

MISSING = ("barrier", "clone", "list_keys", "queue_len", "queue_pop", "queue_push")

for kind in (dist.Store, dist.TCPStore, dist.HashStore, dist.FileStore, dist.PrefixStore):
    for name in MISSING:
        if name in vars(kind):
            delattr(kind, name)

_version = importlib.metadata.version
importlib.metadata.version = lambda distribution_name: "2.6.0" if distribution_name == "torch" else _version(distribution_name)
