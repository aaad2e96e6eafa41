"""One pipeline step each, named by its verb, and what they share."""
