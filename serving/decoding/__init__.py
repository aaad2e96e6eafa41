"""Models that continue text: prompts in, token by token out, several texts at a time."""
