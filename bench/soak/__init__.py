"""A long training run whose ranks, store and connections are killed, stopped and cut: `python -m bench.soak --minutes 30 --seed 7`."""
