"""Scalars: declared, written, watched for signs of collapse."""
