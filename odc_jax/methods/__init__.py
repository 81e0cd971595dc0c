"""One paper per file; the papers differ only here.

A method is a module. Its state is a NamedTuple of arrays; what lies in the
field `samples` has a row for every image and is split over the devices, the
rest is copied. The docstring begins with the paper's title. These it must have:

  init(config, num_examples, key) -> state
    The state before anything is known. Raises UserError for choices in the
    method's own section of the config that do not exist.
  targets(config, state, views, batch, step) -> targets
    What the step's loss compares with; no gradient flows through it. `views`
    holds the network's `Outputs` of every view of the batch, `batch["index"]`
    the images' numbers, int32 [b]; `step` counts from 0.
  loss(config, views, targets, state) -> (scalar, scalars to log)
  after_step(config, state, views, targets, batch, step)
      -> (state, scalars to log)
    In the same compiled program as the step: static shapes, nothing on the
    host. The state is the one that `targets` saw.

and these where the paper has them; `DEFAULTS` says what holds otherwise:

  HEAD: the network's head, a name of `models.network.HEADS`.
  VIEWS_TOGETHER: whether the views of a batch share BatchNorm statistics.
  FRESH: parts of the network that start anew after a re-clustering.
  prepare(params) -> params
    Before the forward pass of every step.
  recluster_due(config, step) -> bool
    On the host: whether to re-cluster before this step.
  recluster(config, state, passes, step) -> state
    Called where it is due, outside the step; see `Passes`. Can be traced.
  sampler(config, clusters, step) -> indices
    On the host, after a re-clustering: the images that are trained on until
    the next one, whole batches of them, from `clusters(state)` without padding.
  clusters(state), previous_clusters(state) -> [n]
    The cluster of every image, and what to compare it with; k where an image
    has none.
  dissolved_clusters(state) -> count since the epoch began
  temperature(config) -> what logits are divided by for probabilities
"""

import types
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float

from odc_jax import labels
from odc_jax.methods import (
  coke,
  deepcluster,
  deepcluster_v2,
  odc,
  secu,
  sela,
  swav,
)


class Passes(NamedTuple):
  """What a re-clustering may ask of the network.

  Attributes:
    embeddings: () -> embeddings of all images, [n, d]: in evaluation mode, of
      centre crops. Rows are split and padded as the memories'.
    augmented: () -> embeddings of all images, [n, v, d], of the v large views:
      in training mode, of augmented crops in random order. Running statistics
      move on.
    head: (params, embeddings [b, d]) -> logits, [b, k] for each clustering.
    params: The network's parameters.
  """

  embeddings: Callable[[], Float[Array, "n d"]]
  augmented: Callable[[], Float[Array, "n v d"]]
  head: Callable[..., tuple[Array, ...]]
  params: Any


DEFAULTS: dict[str, Any] = {
  "HEAD": "linear",
  "VIEWS_TOGETHER": True,
  "FRESH": (),
  "prepare": lambda params: params,
  "recluster_due": lambda config, step: False,
  "recluster": None,
  "sampler": None,
  "clusters": lambda state: labels.first_clustering(state.samples.assignments),
  "previous_clusters": lambda state: state.samples.previous,
  "dissolved_clusters": None,
  "temperature": lambda config: 1.0,
}


def complete(**names: Any) -> Any:
  """Returns a method of these names, with what it leaves out filled in."""
  return types.SimpleNamespace(**{**DEFAULTS, **names})


METHODS = {
  module.__name__.rpartition(".")[2]: complete(**vars(module))
  for module in (odc, deepcluster, sela, swav, deepcluster_v2, coke, secu)
}
