"""GRPO without Lightning: a tree of images, its credit, and the loss."""
