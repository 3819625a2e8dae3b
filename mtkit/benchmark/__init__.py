"""Measurements of speed and memory, on this machine, of models that are there."""
