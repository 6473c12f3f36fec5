"""A rank whose model is on the GPU: `python -m coxless run ... gpu_rank.py BACKEND UPDATES`. The first process of the last rank dies in the middle."""

import hashlib
import os
import signal
import sys
import time

import coxless
from coxless.training import DataParallel, batch_at

# isort: split
import torch
from torch import nn


def main(backend: str, total: int) -> None:
    torch.manual_seed(5)
    x, y = torch.randn(256, 32, device="cuda"), torch.randn(256, 8, device="cuda")
    torch.manual_seed(int(os.environ["RANK"]))  # all different: the state has to come from one of them
    model = nn.Sequential(nn.Linear(32, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 8)).cuda()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    last = int(os.environ["WORLD_SIZE"]) - 1
    with coxless.join_from_env() as crew:
        trainer = DataParallel(crew, model, optimizer, backend=backend)
        for step in trainer.steps(total):
            if crew.rank == last > 0 and crew.member.number == 1 and step.position >= total // 2:
                os.kill(os.getpid(), signal.SIGKILL)
            if len(step.iteration.participants) <= last:
                time.sleep(0.05)  # a step time, so that the rank is back before the training is over
            rows = step.shard(batch_at(step.position, samples=len(x), batch_size=64))
            nn.functional.mse_loss(model(x[rows]), y[rows]).backward()
        assert all(value.is_cuda for value in model.state_dict().values())
        weights = hashlib.sha256(b"".join(value.cpu().numpy().tobytes() for value in model.state_dict().values()))
        print(f"position {trainer.position}, incarnation {crew.member.number}, weights {weights.hexdigest()}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
