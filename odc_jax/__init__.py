"""Online Deep Clustering (ODC, CVPR 2020) in JAX."""

from odc_jax.errors import UserError

__all__ = ["UserError"]
