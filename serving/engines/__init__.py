"""Engine processes: how they are started, what they are sent, and what they do with it."""
