"""What a translation is worth: hypotheses against references."""
