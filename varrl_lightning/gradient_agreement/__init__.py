"""Gradients of independent batches, for several ways to make one."""
