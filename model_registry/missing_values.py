"""Which inputs may lack values: those that lacked some in training. An asset of the variant, a JSON list of names."""

MISSING_VALUES = "assets/missing.json"
