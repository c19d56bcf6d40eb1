"""From a prompt to tokens: what the words mean, and the numbers that a model is told."""
