"""Text in, text out: what stands between lines of text and the search."""
