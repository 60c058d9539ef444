"""What a completion is paid for: one table of rewards, and what a reward sees of a step."""
