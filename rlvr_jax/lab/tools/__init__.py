"""What a user runs beside training: the memory calculator, timings, one-off completions."""
