"""What runs, and in which order: the flows, their specs and the command line."""
