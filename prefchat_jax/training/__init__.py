"""Training: objective, optimizer, compiled steps, loop, checkpoints."""
