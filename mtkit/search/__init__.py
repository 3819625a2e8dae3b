"""Search over token sequences: beam search and sampling, with a step function for a model. It knows no text."""
