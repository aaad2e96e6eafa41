"""Processes that hold the clients' connections for a front that has too much to do: sockets and TLS, nothing else."""
