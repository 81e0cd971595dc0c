"""Self-labelling via simultaneous clustering and representation learning.

Asano, Rupprecht, Vedaldi, ICLR 2020, arXiv:1911.05371. Official code:
yukimasano/self-label (main.py, cifar.py, sinkhornknopp.py).

One cross-entropy is minimised over the network and over the clusters, with
clusters of equal size. Every step trains the network on the clusters that the
images have; from time to time, often at first, all images get new clusters by
optimal transport: the cheapest ones, by the network's own probabilities, among
those of equal size. Several heads share the backbone, each with a clustering
of its own. No head is ever reset.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from odc_jax import labels, losses
from odc_jax import mesh as mesh_lib
from odc_jax.clustering import assign, sinkhorn
from odc_jax.config import Config
from odc_jax.config import check as config_lib
from odc_jax.errors import UserError
from odc_jax.labels import Labels
from odc_jax.methods.method import Method

_CHOICES = {
  "schedule": ("quadratic", "linear"),
  "heads": ("all", "one"),
}


class SeLaState(NamedTuple):
  """The clusters of every image, and two things about them.

  Attributes:
    samples: The clusters L, a column for each head.
    sizes: Images in each cluster of the first head.
    num_iters: Iterations that the last solve of the first head took.
  """

  samples: Labels
  sizes: Int[Array, "k"]
  num_iters: Int[Array, ""]


class Targets(NamedTuple):
  """The labels of a batch, a column for each head."""

  clusters: Int[Array, "b h"]


def init(config: Config, num_examples: int, key) -> SeLaState:
  """Returns clusters of equal size that mean nothing.

  The first solve overwrites them, at step 0.

  Args:
    config: Reads `num_clusters`, `extra_clusters`, `sela.*`.
    num_examples: Images in the data set.
    key: Seeds the random clusters.

  Raises:
    UserError: If one of the choices in the section `sela` does not exist.
  """
  for name, choices in _CHOICES.items():
    if config.sela[name] not in choices:
      raise UserError(
        f"unknown sela.{name} {config.sela[name]!r}; choose "
        f"{' or '.join(choices)}"
      )
  if config.sela.num_solves < 2:
    raise UserError(
      f"sela.num_solves={config.sela.num_solves}: there is one at the start "
      "and one at the end, take 2 or more"
    )
  n = mesh_lib.padded_rows(num_examples)
  index = jnp.arange(n, dtype=jnp.int32)

  def shuffled(head, k):
    # i mod k, every k images turned by another number. To shuffle all of them
    # would need a sort, and them on every device.
    def turn(block):
      block_key = jax.random.fold_in(jax.random.fold_in(key, head), block)
      return jax.random.randint(block_key, (), 0, k)

    clusters = (index + jax.vmap(turn)(index // k)) % k
    return jnp.where(index < num_examples, clusters, k)

  ks = config_lib.clusterings(config)
  assignments = jnp.stack([shuffled(h, k) for h, k in enumerate(ks)], axis=1)
  first = assignments[:, 0]
  return SeLaState(
    Labels(assignments, first),
    labels.cluster_sizes(first, ks[0]),
    num_iters=jnp.int32(0),
  )


def solve_steps(config: Config) -> Int[np.ndarray, "s"]:
  """Returns the steps before which the clusters are solved for, ascending.

  A solve is due when t_j images have been seen, j = 0 ... num_solves - 1; what
  falls into the same step is one solve. Quadratic, t_j = (E + 1.01) N
  (j / (num_solves - 1))^2, has many of them early, while the network changes
  most; linear spreads them evenly over the E epochs.

  Args:
    config: Reads `sela.schedule`, `sela.num_solves`, `num_epochs`,
      `num_examples`, `batch_size`.

  Source: self-label main.py: optimize_times; cifar.py.
  """
  share = np.linspace(0, 1, config.sela.num_solves)
  if config.sela.schedule == "quadratic":
    epochs = (config.num_epochs + 1.01) * share**2
  else:
    epochs = config.num_epochs * share
  seen = epochs * config.num_examples
  return np.unique(np.ceil(seen / config.batch_size).astype(np.int64))


def recluster_due(config: Config, step: int) -> bool:
  """Returns whether this is one of `solve_steps`."""
  return bool(np.any(solve_steps(config) == step))


def recluster(config: Config, state: SeLaState, passes, step: int) -> SeLaState:
  """Gives all images new clusters, in all heads or in one after the other.

  Args:
    config: Reads `num_clusters`, `extra_clusters`, `num_examples`, `sela.*`.
    state: The clusters before this step.
    passes: Over the images as training sees them: augmented, with dropout and
      the batches' own statistics.
    step: Which.

  Returns:
    The clusters.

  Source: self-label sinkhornknopp.py: optimize_L_sk_multi; cifar.py: opt_sk
    (one head at a time).
  """
  sela, ks = config.sela, config_lib.clusterings(config)
  heads = range(len(ks))
  if sela.heads == "one":
    num_before = int(np.sum(solve_steps(config) < step))
    heads = [num_before % len(ks)]
  samples, sizes, num_iters = state
  embeddings, done = passes.augmented(), samples.previous
  for h in heads:
    # One [n, k] at a time.
    log_p = _log_probabilities(passes.head, h, passes.params, embeddings, done)
    done, _, iters = sinkhorn.optimal_transport(
      log_p,
      power=sela.power,
      tolerance=sela.tolerance,
      num_examples=config.num_examples,
    )
    del log_p
    samples = _with_clusters(samples, h, done)
    if h == 0:
      sizes, num_iters = _sizes(done, ks[0]), iters
  return SeLaState(samples, sizes, num_iters)


# Compiled once for each head, not at each of a hundred solves.
@functools.partial(jax.jit, static_argnames=("head", "h"))
def _log_probabilities(head, h, params, embeddings, done):
  """Returns log P of head h for the first of v views: [n, v, d] -> [n, k].

  Rows are split, and taken in chunks. It waits for `done`, the clusters of the
  head before: compiled as one program (a plan does), all would begin at once.
  """
  k = jax.eval_shape(head, params, embeddings[:, 0])[h].shape[1]

  def local(params, embeddings, done):
    n = embeddings.shape[0]
    size = assign.chunk_rows(n, k, None)

    def step(log_p, start, _):
      rows = jax.lax.dynamic_slice_in_dim(embeddings, start, size)[:, 0]
      logits = head(params, rows)[h]
      return jax.lax.dynamic_update_slice_in_dim(
        log_p, jax.nn.log_softmax(logits), start, 0
      )

    # Its values are overwritten; the loop needs an array of this shape.
    filled = jnp.broadcast_to(done[:, None].astype(jnp.float32), (n, k))
    return assign.over_chunks(n, size, step, filled)

  whole, rows = mesh_lib.REPLICATED, mesh_lib.ROWS
  return mesh_lib.per_shard(local, (whole, rows, rows), rows)(
    params, embeddings, done
  )


@functools.partial(jax.jit, static_argnames="h")
def _with_clusters(samples, h, clusters):
  """Returns the samples with new clusters [n] of head h."""
  assignments = samples.assignments
  if h == 0:
    samples = samples._replace(previous=assignments[:, 0])
  # Not by index: a scatter would have the partitioner gather the rows.
  is_head = jnp.arange(assignments.shape[1]) == h
  return samples._replace(
    assignments=jnp.where(is_head[None, :], clusters[:, None], assignments)
  )


_sizes = jax.jit(labels.cluster_sizes, static_argnums=1)


def targets(config: Config, state: SeLaState, views, batch, step) -> Targets:
  """Returns the clusters of the batch."""
  del config, views, step
  return Targets(state.samples.assignments[batch["index"]])


def loss(config: Config, views, targets: Targets, state: SeLaState):
  """Returns the mean cross-entropy of the heads and what to log."""
  del config, state
  value = jnp.mean(
    jnp.stack(
      [
        losses.cross_entropy(logits, targets.clusters[:, h])
        for outputs in views
        for h, logits in enumerate(outputs.logits)
      ]
    )
  )
  accuracy = losses.accuracy(views[0].logits[0], targets.clusters[:, 0])
  return value, {"train/cluster_accuracy": accuracy}


def after_step(config: Config, state: SeLaState, views, targets, batch, step):
  """Changes nothing: the clusters stay until the next solve."""
  del config, views, targets, batch, step
  return state, {
    **labels.size_scalars(state.sizes),
    "cluster/transport_iterations": state.num_iters,
  }


METHOD = Method(
  NAME="SeLa",
  init=init,
  targets=targets,
  loss=loss,
  after_step=after_step,
  KEYS=(
    "sela.num_solves",
    "sela.schedule",
    "sela.heads",
    "sela.power",
    "sela.tolerance",
    "extra_clusters",
    "data.views",
  ),
  recluster_due=recluster_due,
  recluster=recluster,
)
