"""Training: loss, schedule, optimizer, training loop, validation and checkpointing."""
