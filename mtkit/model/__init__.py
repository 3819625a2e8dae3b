"""The Transformer, from scratch: attention, positions, layers, and the encoder-decoder made of them."""
