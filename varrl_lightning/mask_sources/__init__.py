"""Mask sources: which pixels decided a reward (section 3.5)."""
