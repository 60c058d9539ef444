"""Ways other than RL to raise a model's accuracy (decoding, steering, critiques), and measurements of RL's changes."""
