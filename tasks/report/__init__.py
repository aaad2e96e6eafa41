"""report: the run as a value, and the pages made from it."""
