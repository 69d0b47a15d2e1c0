"""A checkpoint's way: saved whole, checked, restored."""
