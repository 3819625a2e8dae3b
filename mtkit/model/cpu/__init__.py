"""CPU implementations: attention for training, packed and 8-bit weights for translation."""
