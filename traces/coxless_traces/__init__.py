"""Replay and validation: the bridge between model and implementation."""
