"""The problems to train and measure on: synthetic families, problem files, prompts, and the choice of an example."""
