"""The experiments, one file each, and what they share (`common`)."""
