"""Weights both ways between a network here and PyTorch's files."""
