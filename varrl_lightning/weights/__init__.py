"""Published files and trainers' checkpoints to tensors, strictly: hubs, folders, shards, sizes."""
