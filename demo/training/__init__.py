"""Trains the demo checkpoint from scratch; not installed."""
