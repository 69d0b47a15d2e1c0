"""From names in a file to objects: class paths, plain specs, configuration files, and what jsonargparse's complaints mean."""
