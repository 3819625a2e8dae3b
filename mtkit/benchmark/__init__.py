"""Measurements on the user's own machine: how fast mtkit trains, beside a plain PyTorch loop of the same shape."""
