"""Where an answer is in a completion, and whether it is right."""
