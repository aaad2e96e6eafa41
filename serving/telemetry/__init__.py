"""What is known of single requests: their ids, the access log, traces; and how the log's lines are written."""
