"""What makes the model fast on CPUs."""
