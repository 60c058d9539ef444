"""The table of rewards, the data of a training step that a reward receives, and their weighted sum."""
