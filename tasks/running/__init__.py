"""Shelf: how a step is run. The cache, child processes, the machine's lock, retries, errors."""
