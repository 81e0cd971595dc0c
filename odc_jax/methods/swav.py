"""Unsupervised learning of visual features by contrasting cluster assignments.

Caron, Misra, Mairal, Goyal, Bojanowski, Joulin, NeurIPS 2020,
arXiv:2006.09882. Official code: facebookresearch/swav (main_swav.py).

Every step compares the views of its images with k learnt prototypes. The large
views get codes: soft clusters that use all prototypes about equally over the
batch, by three iterations of Sinkhorn-Knopp. Every view is to predict the code
of another one. Nothing is kept of an image; a queue of earlier embeddings makes
small batches long enough for all prototypes. The clusters that are handed over
are the largest entries of the last codes.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from odc_jax import labels, losses
from odc_jax import mesh as mesh_lib
from odc_jax.clustering.sinkhorn import sinkhorn_codes
from odc_jax.config import Config
from odc_jax.config import check as config_lib
from odc_jax.errors import UserError
from odc_jax.labels import Labels
from odc_jax.methods.method import Method


class SwAVState(NamedTuple):
  """The last cluster of every image, and the queue.

  Attributes:
    samples: Clusters, for those who read them; the method does not.
    sizes: Images in each cluster.
    queue: Embeddings of the large views in the last batches, newest first;
      zeros where there is none yet. None without a queue.
  """

  samples: Labels
  sizes: Int[Array, "k"]
  queue: Float[Array, "v q d"] | None


class Targets(NamedTuple):
  """The codes q of every large view, which the other views predict."""

  codes: tuple[Float[Array, "b k"], ...]


def idle(values: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
  """Yields each key that does nothing, and the key that is the reason."""
  if not values.get("swav.queue_length"):
    yield "swav.queue_start_epoch", "swav.queue_length"


def init(config: Config, num_examples: int, key) -> SwAVState:
  """Returns no clusters and an empty queue.

  Args:
    config: Reads `num_clusters`, `data.views`, `data.small_views`,
      `model.embedding_dim`, `swav.*`.
    num_examples: Images in the data set.
    key: Unused: nothing here is random.

  Raises:
    UserError: If there is no other view to predict a code from, or a number
      of the section `swav` makes no sense.
  """
  del key
  views, swav = config.data.views, config.swav
  if views + config.data.get("small_views", 0) < 2:
    raise UserError(
      "swav predicts the code of a view from another one: take two or more "
      "with --config.data.views"
    )
  if swav.sinkhorn_iters < 1 or swav.epsilon <= 0 or swav.temperature <= 0:
    raise UserError(
      f"swav.sinkhorn_iters={swav.sinkhorn_iters}, epsilon={swav.epsilon} and "
      f"temperature={swav.temperature} have to be above 0"
    )
  k, d = config.num_clusters, config.model.embedding_dim
  queue = None
  if swav.queue_length:
    queue = jnp.zeros((views, swav.queue_length, d))
  return SwAVState(
    labels.no_labels(num_examples, (k,)), jnp.zeros((k,), jnp.int32), queue
  )


def prepare(params):
  """Returns the parameters with prototypes of unit length, as they stay.

  Source: main_swav.py: train, "normalize the prototypes".
  """
  head = params["head"]
  kernels = {
    # As torch's F.normalize guards it; [d, k], a prototype is a column.
    name: kernel
    / jnp.maximum(jnp.linalg.norm(kernel, axis=0, keepdims=True), 1e-12)
    for name, kernel in head["kernels"].items()
  }
  return {**params, "head": {**head, "kernels": kernels}}


def temperature(config: Config) -> float:
  """Returns tau."""
  return config.swav.temperature


def targets(config: Config, state: SwAVState, views, batch, step) -> Targets:
  """Returns the codes of the large views.

  Args:
    config: Reads `data.views`, `swav.epsilon`, `swav.sinkhorn_iters`.
    state: The state before this step; its queue takes part once it is full.
    views: Of the batch, the large ones first.
    batch: Unused.
    step: Unused.
  """
  del batch, step
  swav, queue = config.swav, state.queue

  def codes(scores, more_scores=None):
    return sinkhorn_codes(
      scores, swav.epsilon, swav.sinkhorn_iters, more_scores
    )

  def with_queue(i, scores):
    assert queue is not None
    (prototypes,) = views[i].prototypes
    more_scores = jnp.matmul(queue[i], prototypes.T, precision="highest")
    return codes(scores, more_scores)

  found = []
  for i in range(config.data.views):
    (scores,) = views[i].logits
    if queue is None:
      found.append(codes(scores))
      continue
    # An embedding has unit length; a row that was never written, none.
    is_full = jnp.any(queue[i, -1] != 0)
    found.append(
      jax.lax.cond(
        is_full,
        lambda scores, i=i: with_queue(i, scores),
        codes,
        scores,
      )
    )
  return Targets(tuple(found))


def loss(config: Config, views, targets: Targets, state: SwAVState):
  """Returns the swapped prediction loss and what to log.

  The mean over the large views i, and over all others v, of
  -sum_k q_ik log softmax_k(scores_v / tau). Source: main_swav.py: train.
  """
  del state
  scores = [outputs.logits[0] / config.swav.temperature for outputs in views]
  terms = [
    jnp.mean(losses.soft_cross_entropy(scores[v], codes))
    for i, codes in enumerate(targets.codes)
    for v in range(len(views))
    if v != i
  ]
  clusters = jnp.argmax(targets.codes[0], axis=1)
  accuracy = losses.accuracy(scores[1], clusters)
  return jnp.mean(jnp.stack(terms)), {"train/cluster_accuracy": accuracy}


def after_step(config: Config, state: SwAVState, views, targets, batch, step):
  """Puts the embeddings into the queue, and keeps the clusters.

  Args:
    config: Reads `num_examples`, `batch_size`, `swav.queue_start_epoch`.
    state: That `targets` saw.
    views: Of the batch.
    targets: The codes, the first of which say the clusters.
    batch: With `index`, int32 [b].
    step: The number of this step, from 0.

  Returns:
    The state and the `cluster/...` scalars of `metrics.SCALARS`.
  """
  samples, sizes, queue = state
  steps_per_epoch = config_lib.steps_per_epoch(config)
  samples = labels.at_epoch_start(samples, step, steps_per_epoch)
  clusters = jnp.argmax(targets.codes[0], axis=1).astype(jnp.int32)
  samples, sizes, label_change = labels.relabel(
    samples, sizes, batch["index"], clusters[:, None]
  )
  if queue is not None:
    embeddings = mesh_lib.replicate(
      jnp.stack([outputs.embeddings for outputs in views[: queue.shape[0]]])
    )
    pushed = jnp.concatenate([embeddings, queue], axis=1)[:, : queue.shape[1]]
    begun = step >= config.swav.queue_start_epoch * steps_per_epoch
    queue = jnp.where(begun, pushed, queue)
  return SwAVState(samples, sizes, queue), {
    "cluster/label_change": label_change,
    **labels.size_scalars(sizes),
  }


# The README's words on a collapse, in which the loss stays at ln K.
_COLLAPSE = (
  "Likely cause: the codes collapse. Lower swav.epsilon (to 0.03), lengthen "
  "optimizer.head_freeze_epochs, or lower optimizer.learning_rate"
)

METHOD = Method(
  NAME="SwAV",
  init=init,
  targets=targets,
  loss=loss,
  after_step=after_step,
  KEYS=(
    "swav.temperature",
    "swav.epsilon",
    "swav.sinkhorn_iters",
    "swav.queue_length",
    "swav.queue_start_epoch",
    "data.views",
    "data.small_views",
    "data.small_size",
    "data.small_crop_scale",
    "model.embedding_dim",
  ),
  idle=idle,
  HEAD="prototypes",
  # Its clusters are those of a batch: among other images an image may well
  # get another one.
  SPARED=("restless",),
  ADVICE=dict.fromkeys(("sizes", "largest", "empty", "chance"), _COLLAPSE),
  prepare=prepare,
  temperature=temperature,
)
