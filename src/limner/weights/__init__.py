"""Weights: safetensors files in, networks out, strictly. The built-in model's own weights lie in mini/."""
