"""Tables of the images that a run was trained on: made, written, read and filtered."""
