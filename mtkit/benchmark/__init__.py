"""Measurements on the user's own machine: how fast mtkit trains and translates, beside others on the same work."""
