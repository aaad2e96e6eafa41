"""What the numbers prove: intervals, paired tests, scores and the Pareto front, for measure, validate and report."""
