"""Next-scale generators: the interface, and one file a family."""
