"""Passes over all images."""
