"""PyTorch checkpoints to ours and back: readers, tables, the engine between them, and the folders they end up in."""
