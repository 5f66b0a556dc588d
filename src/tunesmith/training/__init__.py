"""The one training loop: batches, optimiser, checkpoints, guards."""
