"""Text to batches, in the order of the pipeline.

`sources` (with `readers` and `tables`) yield pairs, `filters` drop some, `tokenizer` turns them into token ids,
`encoding` writes those to a `corpus` in the `cache`, `order` groups them by length, and `batching` makes padded arrays.
`recognize` works out what a user's files are, for `mtkit init`.
"""
