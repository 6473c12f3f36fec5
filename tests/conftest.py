"""Hypothesis is the same in every run, unless `--hypothesis-profile long` asks for more."""

from hypothesis import settings

from coxless_model.stateful import PROFILES

for name, profile in PROFILES.items():
    settings.register_profile(name, profile)
settings.load_profile("ci")
