"""What training is made of: dividing data, moving the state, averaging. On real Gloo groups over a real TCPStore."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from coxless.training import (
    Background,
    EpochGroup,
    average_gradients,
    batch_at,
    broadcast_state,
    generator,
    pack,
    shard,
    unpack,
)

from .training import seeding, with_groups

pytestmark = pytest.mark.usefixtures("loopback")

# --- sharding ---------------------------------------------------------------------------------------------------------------


def test_every_pass_uses_every_sample_once() -> None:
    stream = torch.cat([batch_at(position, samples=10, batch_size=7, seed=3) for position in range(30)])
    for start in range(0, 210, 10):
        assert sorted(stream[start : start + 10].tolist()) == list(range(10))
    assert batch_at(0, samples=3, batch_size=10).numel() == 10


def test_shards_make_up_the_batch() -> None:
    batch = torch.arange(7)
    for size in range(1, 10):
        parts = [shard(batch, index, size) for index in range(size)]
        assert torch.equal(torch.cat(parts), batch)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    with pytest.raises(ValueError, match=r"0\.\.2"):
        shard(batch, 3, 3)


def test_generator_depends_only_on_its_arguments() -> None:
    assert torch.equal(torch.rand(3, generator=generator(1, 2, 0)), torch.rand(3, generator=generator(1, 2, 0)))
    assert not torch.equal(torch.rand(3, generator=generator(1, 2, 0)), torch.rand(3, generator=generator(1, 20)))


# --- state as plain numbers -------------------------------------------------------------------------------------------------


def test_state_survives_packing() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.8, 0.99))
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    tree = {
        "o": optimizer.state_dict(),
        "m": model.state_dict(),
        "n": [None, True, 0.1, "é"],
        "e": torch.empty(0),
        "b": torch.tensor(True),
    }
    again = unpack(*pack(tree))
    assert again["o"]["param_groups"] == tree["o"]["param_groups"]
    assert again["o"]["state"].keys() == tree["o"]["state"].keys()
    assert again["n"] == tree["n"]
    torch.optim.AdamW(model.parameters()).load_state_dict(again["o"])


def test_foreign_things_are_refused() -> None:
    with pytest.raises(TypeError, match="Linear cannot be sent"):
        pack({"model": nn.Linear(1, 1)})
    with pytest.raises(ValueError, match="not the shape"):
        unpack('{"reduce": []}', [])
    with pytest.raises(ValueError, match="more tensors"):
        unpack('{"tensor": ["float32", 1]}', [])


def test_state_arrives_bit_identical(store: Any) -> None:
    tree = {
        "half": torch.randn(5).half(),
        "strided": torch.randn(4, 6).T,
        "empty": torch.empty(0, 3),
        "one": torch.tensor(7),
        "n": (1, 2.5),
    }
    received = with_groups(store, 3, lambda group: broadcast_state(group, tree if group.index == 1 else None, 1))
    for state in received:
        assert state["n"] == (1, 2.5)
        for name in ("half", "strided", "empty", "one"):
            assert torch.equal(state[name], tree[name])
            assert state[name].dtype == tree[name].dtype


# --- averaging --------------------------------------------------------------------------------------------------------------


def test_average_is_the_gradient_of_the_whole_batch(store: Any) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(10, 4), torch.randn(10, 3)

    def gradients(index: int, size: int, group: EpochGroup | None) -> list[torch.Tensor | None]:
        with seeding:
            torch.manual_seed(1)
            model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
            unused = nn.Linear(2, 2)
        rows = shard(torch.arange(10), index, size)
        nn.functional.mse_loss(model(x[rows]), y[rows]).backward()
        parameters = [*model.parameters(), *unused.parameters()]
        if group is not None:
            average_gradients(group, parameters, len(rows), bucket_bytes=64)
        return [parameter.grad for parameter in parameters]

    whole = gradients(0, 1, None)
    results = with_groups(store, 4, lambda group: gradients(group.index, 4, group))
    for result in results:
        for got, first, want in zip(result, results[0], whole, strict=True):
            if want is None:
                assert got is None
            else:
                assert torch.equal(got, first)
                torch.testing.assert_close(got, want)


def test_an_empty_shard_counts_for_nothing(store: Any) -> None:
    def body(group: EpochGroup) -> torch.Tensor | None:
        parameter = nn.Parameter(torch.zeros(3))
        empty = group.index == 1
        parameter.grad = torch.full((3,), float("nan") if empty else 4.0)
        average_gradients(group, [parameter], 0 if empty else 5)
        return parameter.grad

    for gradient in with_groups(store, 2, body):
        assert torch.equal(gradient, torch.full((3,), 4.0))


def test_weights_are_checked(store: Any) -> None:
    def body(group: EpochGroup) -> None:
        average_gradients(group, [nn.Parameter(torch.zeros(1))], 0)

    assert all("all weights are 0" in str(error) for error in with_groups(store, 2, body))
    lone = EpochGroup(None, 0, 1, watch=lambda: None, background=Background())
    with pytest.raises(ValueError, match="finite"):
        average_gradients(lone, [nn.Parameter(torch.zeros(1))], float("nan"))
