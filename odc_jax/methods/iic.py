"""Invariant Information Clustering, for images and without labels.

Ji, Henriques, Vedaldi, ICCV 2019, arXiv:1807.06653. Official code: xu-ji/IIC
(utils/cluster/IID_losses.py, scripts/cluster/cluster_sobel_twohead.py).

A network and a softmax learn, from scratch, to say the same of an image and of
a changed copy of it, and to say as much as can be said: the mutual information
of the two predictions over a batch is made as large as possible. Its entropy
keeps the clusters from running empty. A second set of heads with more clusters
("over-clustering") shares the network and takes turns with the first, epoch by
epoch. Each set has several linear heads that differ in their start alone.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from odc_jax import labels
from odc_jax.clustering import ensemble
from odc_jax.config import Config
from odc_jax.config import check as config_lib
from odc_jax.errors import UserError
from odc_jax.labels import Labels
from odc_jax.methods.method import Method

_TURNS = ("main", "over")

# Of float64, as in the official code; the arithmetic is in float32.
EPS = 2.220446049250313e-16


class IICState(NamedTuple):
  """The last cluster of every image, and what is known of the heads.

  Attributes:
    samples: Clusters by the first main head at the last visit; by the vote of
      all of them once the run is finished.
    sizes: Images in each cluster.
    losses: Of each main head, summed since its set's last turn began.
    names: What each main head's clusters are called where all of them vote; -1
      before the run is finished.
  """

  samples: Labels
  sizes: Int[Array, "k"]
  losses: Float[Array, "h"]
  names: Int[Array, "h k"]


class Targets(NamedTuple):
  """Whether it is the turn of the main heads, not of those of more clusters."""

  is_main: Bool[Array, ""]


def idle(values: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
  """Yields each key that does nothing, and the key that is the reason."""
  if "over" not in values.get("iic.turns", ("over",)):
    yield "iic.over_clusters", "iic.turns"


def clusterings(config: Config) -> tuple[int, ...]:
  """Returns k of every head: the main ones, then those with more clusters."""
  iic = config.iic
  main = (config.num_clusters,) * iic.num_heads
  if "over" not in iic.turns:
    return main
  return main + (iic.over_clusters,) * iic.num_heads


def init(config: Config, num_examples: int, key) -> IICState:
  """Returns no clusters.

  Args:
    config: Reads `num_clusters`, `data.views`, `data.small_views`, `iic.*`.
    num_examples: Images in the data set.
    key: Unused: nothing here is random.

  Raises:
    UserError: If there is no copy to compare an image with, or a value of the
      section `iic` makes no sense.
  """
  del key
  iic, k = config.iic, config.num_clusters
  small = config.data.get("small_views", 0)
  if not small or small % config.data.views:
    raise UserError(
      f"iic compares each of data.views={config.data.views} with as many of "
      f"data.small_views={small}: take a multiple with "
      "--config.data.small_views"
    )
  if "main" not in iic.turns or not {*iic.turns} <= {*_TURNS}:
    raise UserError(
      f"iic.turns={iic.turns} are no turns: each epoch is 'main' or 'over', "
      "one of them 'main'"
    )
  if iic.num_heads < 1:
    raise UserError(f"iic.num_heads={iic.num_heads} is less than 1")
  if "over" in iic.turns and not 1 < iic.over_clusters <= num_examples:
    raise UserError(
      f"iic.over_clusters={iic.over_clusters} is not between 2 and the "
      f"{num_examples} images; choose another with --config.iic.over_clusters"
    )
  return IICState(
    labels.no_labels(num_examples, (k,)),
    jnp.zeros((k,), jnp.int32),
    jnp.zeros((iic.num_heads,)),
    jnp.full((iic.num_heads, k), -1, jnp.int32),
  )


def targets(config: Config, state: IICState, views, batch, step) -> Targets:
  """Returns whose turn the epoch of this step is.

  Args:
    config: Reads `num_examples`, `batch_size`, `iic.turns`.
    state: Unused.
    views: Unused.
    batch: Unused.
    step: The number of this step, from 0.
  """
  del state, views, batch
  turns = np.array([turn == "main" for turn in config.iic.turns])
  epoch = step // config_lib.steps_per_epoch(config)
  return Targets(jnp.asarray(turns)[epoch % len(turns)])


def joint(
  x: Float[Array, "b k"], other: Float[Array, "b k"]
) -> Float[Array, "k k"]:
  """Returns P of eq. 3: how often two clusters are said of a pair.

  Made symmetric, as an image and its copy may swap places.

  Args:
    x: Probabilities of the clusters of images.
    other: Of their copies.
  """
  # Over the batch, which lies on all devices: what moves is [k, k].
  table = jnp.matmul(x.T, other, precision="highest")
  table = (table + table.T) / 2
  return table / jnp.sum(table)


def information_loss(
  x: Float[Array, "b k"], other: Float[Array, "b k"], marginal_weight: float
) -> Float[Array, ""]:
  """Returns minus the mutual information of two predictions, eq. 2.

  -sum_ij P_ij (ln P_ij - w ln P_i - w ln P_j). Entries below `EPS` count as
  that and get no gradient; the marginals are taken before.

  Args:
    x: Probabilities of the clusters of images.
    other: Of their copies.
    marginal_weight: w; 1 for the mutual information, more weighs the entropy of
      the clusters.

  Source: utils/cluster/IID_losses.py: IID_loss.
  """
  p = joint(x, other)
  rows, columns = jnp.sum(p, axis=1), jnp.sum(p, axis=0)
  p, rows, columns = (
    jnp.where(part < EPS, EPS, part) for part in (p, rows, columns)
  )
  logs = jnp.log(columns)[None, :] + jnp.log(rows)[:, None]
  return -jnp.sum(p * (jnp.log(p) - marginal_weight * logs))


def head_losses(config: Config, views, is_main) -> Float[Array, "h"]:
  """Returns the loss of each head of the set whose turn it is.

  The batch is the large views, each as often as it has copies, against the
  small views: all pairs at once.

  Args:
    config: Reads `data.views`, `iic.*`.
    views: Of the batch, the large ones first.
    is_main: Whether it is the main heads' turn.
  """
  num, h = config.data.views, config.iic.num_heads
  images, copies = views[:num], views[num:]
  times = len(copies) // num

  def losses(heads):
    found = []
    for i in heads:
      x = jnp.concatenate(
        [jax.nn.softmax(view.logits[i]) for view in images] * times
      )
      other = jnp.concatenate(
        [jax.nn.softmax(view.logits[i]) for view in copies]
      )
      found.append(information_loss(x, other, config.iic.marginal_weight))
    return jnp.stack(found)

  if len(views[0].logits) == h:
    return losses(range(h))
  return jax.lax.cond(
    is_main, lambda: losses(range(h)), lambda: losses(range(h, 2 * h))
  )


def loss(config: Config, views, targets: Targets, state: IICState):
  """Returns the mean loss of the heads whose turn it is, and what to log."""
  del state
  by_head = head_losses(config, views, targets.is_main)
  return jnp.mean(by_head), {"train/head_loss_min": jnp.min(by_head)}


def after_step(
  config: Config, state: IICState, views, targets: Targets, batch, step
):
  """Keeps the clusters of the first main head, and adds up the heads' losses.

  Args:
    config: Reads `num_examples`, `batch_size`, `data.views`, `iic.*`.
    state: The state that `targets` saw.
    views: Of the batch.
    targets: Of this step.
    batch: With `index`, int32 [b].
    step: The number of this step, from 0.

  Returns:
    The state and the `cluster/...` scalars of `logs.scalars`.
  """
  num_steps = config_lib.steps_per_epoch(config)
  samples = labels.at_epoch_start(state.samples, step, num_steps)
  clusters = jnp.argmax(views[0].logits[0], axis=1).astype(jnp.int32)
  samples, sizes, change = labels.relabel(
    samples, state.sizes, batch["index"], clusters[:, None]
  )
  by_head = head_losses(config, views, targets.is_main)
  begun = jnp.where(step % num_steps == 0, 0.0, state.losses)
  sums = jnp.where(targets.is_main, begun + by_head, state.losses)
  return IICState(samples, sizes, sums, state.names), {
    "cluster/label_change": change,
    **labels.size_scalars(sizes),
  }


def finish(config: Config, state: IICState, head, params, embeddings):
  """Lets the main heads vote on all images, in evaluation mode.

  The official code takes the head of the lowest loss, or, by default, of the
  highest accuracy.

  Args:
    config: Reads `num_clusters`, `num_examples`, `iic.num_heads`.
    state: After the last step.
    head: (params, rows) -> logits of every head.
    params: Of the network.
    embeddings: Of all images, [rows, d].

  Source: utils/cluster/cluster_eval.py: cluster_subheads_eval.
  """
  k = config.num_clusters

  def main(params, rows):
    return head(params, rows)[: config.iic.num_heads]

  valid = jnp.arange(embeddings.shape[0]) < config.num_examples
  assignments = ensemble.by_every_head(main, params, embeddings)
  assignments = jnp.where(valid[:, None], assignments, k)
  order = np.argsort(np.asarray(state.losses), kind="stable")
  found = ensemble.agree(assignments, k, order.tolist())
  samples = state.samples._replace(assignments=found.clusters[:, None])
  return state._replace(
    samples=samples,
    sizes=labels.cluster_sizes(found.clusters, k),
    names=jnp.asarray(found.names),
  )


def vote(state: IICState, logits) -> Float[Array, "b k"]:
  """Returns the share of the main heads that vote for each cluster.

  Before the run is finished, how likely they are by the first head.
  """
  h = state.names.shape[0]
  finished = state.names[0, 0] >= 0
  votes = ensemble.shares(
    ensemble.likeliest(logits[:h]), jnp.maximum(state.names, 0)
  )
  return jnp.where(finished, votes, jax.nn.softmax(logits[0]))


METHOD = Method(
  NAME="IIC",
  init=init,
  targets=targets,
  loss=loss,
  after_step=after_step,
  KEYS=(
    "iic.num_heads",
    "iic.over_clusters",
    "iic.turns",
    "iic.marginal_weight",
    "data.views",
    "data.small_views",
    "data.small_size",
    "data.small_crop_scale",
  ),
  idle=idle,
  # Forward of the images, then of all copies, each with statistics of its own.
  VIEWS_TOGETHER="sizes",
  ADVICE=dict.fromkeys(
    ("sizes", "largest", "empty"),
    "Likely cause: the prediction has become the same for all images. Lower "
    "optimizer.learning_rate, or raise batch_size, from which the clusters' "
    "entropy is estimated",
  ),
  # The loss is an information, not that of a classifier; and while the heads
  # of the other set learn, clusters move with the network.
  SPARED=("chance",),
  clusterings=clusterings,
  finish=finish,
  vote=vote,
)
