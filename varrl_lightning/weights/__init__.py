"""Published files to tensors, strictly: hubs, folders, shards, sizes."""
