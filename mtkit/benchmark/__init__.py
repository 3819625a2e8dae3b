"""Benchmarks of training, translation and data preparation on this machine, compared with other systems."""
