"""The training loop, its state, checkpoints, optimizer, metrics, export."""
