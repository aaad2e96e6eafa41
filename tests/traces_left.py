"""A user's module with a state of its own."""

count = 0
