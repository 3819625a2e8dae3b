"""Evaluation of hypotheses against references."""
