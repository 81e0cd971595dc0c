"""Online Deep Clustering (ODC, CVPR 2020) in JAX."""

import os
import typing

from odc_jax.errors import UserError

if typing.TYPE_CHECKING:
  from odc_jax.inference import Run

__all__ = ["UserError", "load"]


def load(workdir: str | os.PathLike) -> "Run":
  """Opens a finished run: its clusters, and its network for new images.

  Args:
    workdir: What `--workdir` was, such as "runs/odc_digits".

  Raises:
    UserError: No run has finished there.
  """
  # Late: importing the package alone need not import JAX.
  from odc_jax import inference

  return inference.Run(workdir)
