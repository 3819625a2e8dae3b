"""Search over token sequences: beam search and sampling, given a step function. It knows no text."""
