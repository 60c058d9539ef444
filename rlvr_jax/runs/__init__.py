"""A run directory: its flags, logs, checkpoints and stop rules, and how an interrupted run continues."""
