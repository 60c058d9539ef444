"""A run directory: flags, log, checkpoints, stop rules, and how it goes on."""
