"""Fixtures from tiny.py for the tests in this folder."""

from tiny import config, corpora_cache, corpus, trained

__all__ = ["config", "corpora_cache", "corpus", "trained"]
