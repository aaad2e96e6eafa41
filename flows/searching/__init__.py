"""The search by budget: candidates, who is trained next, and what is remembered."""
