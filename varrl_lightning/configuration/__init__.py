"""Builds objects from names in a file: class paths, plain specs, configuration files, and what jsonargparse's complaints mean."""
