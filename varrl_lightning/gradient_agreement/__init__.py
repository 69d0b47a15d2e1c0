"""Measures how far gradients of independent batches agree, for variants of the method."""
