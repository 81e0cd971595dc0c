"""A finished run in use: `run = odc_jax.load("runs/odc_digits")`."""

from odc_jax.inference.assigned import ASSIGNED, is_assigned
from odc_jax.inference.network import open_images
from odc_jax.inference.run import Run

__all__ = ["ASSIGNED", "Run", "is_assigned", "open_images"]
