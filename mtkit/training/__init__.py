"""From batches to checkpoints: loss, schedule, optimizer, validation, saving and the loop."""
