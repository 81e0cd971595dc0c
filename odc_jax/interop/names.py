"""A network's arrays under PyTorch's names, in PyTorch's order of axes.

The backbone's names are torchvision's and timm's (of AlexNet, DeepCluster's),
which `models/` shares but for the last part; those of ODC's neck and of the
first head are OpenSelfSup's.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from odc_jax.models.functional import Tree

_LAST = {
  "kernel": "weight",
  "scale": "weight",
  "bias": "bias",
  "mean": "running_mean",
  "var": "running_var",
}

# The heads' names: with the first clustering that of OpenSelfSup's only one.
_HEADS = {"head.heads.0.fc.": "head.fc_cls.", "head.kernels.": "head.weights."}


def by_name(params: Tree, batch_stats: Tree) -> dict[str, Any]:
  """Returns the leaves by PyTorch's names, in our order of axes.

  Args:
    params: Parameters of the whole network.
    batch_stats: Running statistics of the whole network's BatchNorm.

  Returns:
    Such as "backbone.layer1.0.bn2.running_mean" -> leaf.
  """
  leaves = jax.tree_util.tree_leaves_with_path((params, batch_stats))
  return {_name(path): leaf for path, leaf in leaves}


def replace(
  params: Tree, batch_stats: Tree, leaves: Mapping[str, Any]
) -> tuple[Tree, Tree]:
  """Returns the network with some leaves in place of its own.

  Args:
    params: Parameters of the whole network.
    batch_stats: Running statistics of the whole network's BatchNorm.
    leaves: As `by_name` returns them, or some of them.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: leaves.get(_name(path), leaf), (params, batch_stats)
  )


def to_torch(array: np.ndarray) -> np.ndarray:
  """Returns a leaf in PyTorch's order of axes.

  A kernel [h, w, in, out] becomes [out, in, h, w], a matrix [in, out] becomes
  [out, in]; vectors stay.
  """
  axes = {4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim)
  return np.ascontiguousarray(array if axes is None else array.transpose(axes))


def from_torch(array: np.ndarray) -> np.ndarray:
  """Undoes `to_torch`."""
  axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim)
  return np.ascontiguousarray(array if axes is None else array.transpose(axes))


def torch_shape(leaf: Any) -> tuple[int, ...]:
  """Returns the shape that a leaf has in PyTorch."""
  return to_torch(np.empty(leaf.shape, np.bool_)).shape


def _name(path: tuple[Any, ...]) -> str:
  """Returns the PyTorch name of a leaf of (params, batch_stats)."""
  *parts, last = [str(entry.key) for entry in path[1:]]
  # A head that is a list of matrices has numbers for the last part.
  name = ".".join([*parts, _LAST.get(last, last)])
  for ours, theirs in _HEADS.items():
    if name.startswith(ours):
      return name.replace(ours, theirs)
  return name
