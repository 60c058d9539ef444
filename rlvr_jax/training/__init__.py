"""One driver behind GRPO, pre-training and fine-tuning: a run directory around a step function."""
