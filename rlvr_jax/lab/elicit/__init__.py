"""Other ways than RL to bring out what a model can do: other decoding of the same model, and examples to learn from."""
