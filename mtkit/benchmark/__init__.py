"""Benchmarks of training, translation and data preparation on this machine, beside other systems."""
