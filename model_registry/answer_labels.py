"""Where a variant keeps the names of what it answers. Which of the files is there says how they are meant."""

from __future__ import annotations

ONE_OF_SEVERAL = "assets/labels.json"
"""JSON list of the classes: each row is one of them, by a score for each, or by one logit where there are two."""
SEVERAL_AT_ONCE = "assets/several_labels.json"
"""JSON list of labels, any number of which a row has: a logit for each, above 0 means that it has it."""
ONE_PER_WORD = "assets/word_labels.json"
"""JSON list of tags, one of which each word of a text has: a score for each tag and token, [N, tags, length]."""
