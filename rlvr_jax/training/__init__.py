"""The three training commands (GRPO, pre-training, fine-tuning), and the driver that runs each in a run directory."""
