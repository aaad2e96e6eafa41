"""Many rows answered at once: shards of a data set are given to processes, and each answer is written exactly once."""
