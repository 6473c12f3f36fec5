"""Four ranks learn handwritten digits while some of them are killed. `python -m examples.digits`, or `train.py` on its own."""
