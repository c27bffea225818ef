"""Continuous batching over the model: scheduler, thread, memory, generation."""
