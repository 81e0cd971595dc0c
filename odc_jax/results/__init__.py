"""What a run hands over, as numbers: NumPy in, NumPy out; no jax, no files."""
