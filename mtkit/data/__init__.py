"""From text to batches: sources of pairs, filters, tokenizers, the encoded corpus, its batches."""
