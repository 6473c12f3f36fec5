"""Benchmarks. Not part of the tests: they measure, and judge nothing. `make bench` and `make bench-model` run them."""

from coxless.torch_environment import quiet_torch

quiet_torch()  # before torch is imported: a timed-out wait would log, and look names up for it
