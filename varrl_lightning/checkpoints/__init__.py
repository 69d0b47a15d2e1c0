"""How checkpoints are saved, checked and restored."""
