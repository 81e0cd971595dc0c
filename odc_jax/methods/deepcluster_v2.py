"""Unsupervised Learning of Visual Features by Contrasting Cluster Assignments.

Caron, Misra, Mairal, Goyal, Bojanowski, Joulin, NeurIPS 2020, arXiv:2006.09882:
the paper of SwAV, which has DeepCluster-v2 to compare with. Official code:
facebookresearch/swav (main_deepclusterv2.py).

DeepCluster with several views, a projection to the sphere, spherical k-means on
the embeddings that the epoch before left in a bank (instead of a pass over the
images), and the centroids in place of a classifier, so that nothing starts
anew. Several clusterings are learnt side by side.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from odc_jax import labels as labels_lib
from odc_jax import losses
from odc_jax.clustering import spherical
from odc_jax.config import Config
from odc_jax.config import check as config_lib
from odc_jax.errors import UserError
from odc_jax.methods.method import Method

_MEMORY_DTYPES = ("float32", "bfloat16")


class Samples(NamedTuple):
  """The memory of every image; rows split over the devices.

  Attributes:
    assignments: A column for each clustering, [0, k) of that one; k on images
      that were not in the bank, and on pad rows.
    previous: Those of the first clustering before the last re-clustering.
    bank: The last embeddings of the large views, unit rows.
    in_bank: Whether they are of the epoch under way.
  """

  assignments: Int[Array, "n h"]
  previous: Int[Array, "n"]
  bank: Float[Array, "n v d"]
  in_bank: Bool[Array, "n"]


class DeepClusterV2State(NamedTuple):
  """The bank, and the last clusterings.

  Attributes:
    samples: Of every image.
    centroids: Unit rows, for each clustering.
    sizes: Images in each cluster of the first clustering.
  """

  samples: Samples
  centroids: tuple[Float[Array, "_ d"], ...]
  sizes: Int[Array, "k"]


class Targets(NamedTuple):
  """The labels of all views of an image: its cluster in each clustering."""

  clusters: Int[Array, "b h"]


def init(config: Config, num_examples: int, key) -> DeepClusterV2State:
  """Returns an empty bank, to be filled by `recluster`.

  Args:
    config: Reads `num_clusters`, `extra_clusters`, `batch_size`, `data.views`,
      `model.embedding_dim`, `deepcluster_v2.memory_dtype`.
    num_examples: Images in the data set.
    key: Unused: nothing here is random.

  Raises:
    UserError: If there is no such `memory_dtype`, or if an epoch has fewer
      images than there are clusters.
  """
  del key
  dtype = config.deepcluster_v2.memory_dtype
  if dtype not in _MEMORY_DTYPES:
    raise UserError(
      f"unknown deepcluster_v2.memory_dtype {dtype!r}; choose "
      f"{', '.join(_MEMORY_DTYPES)}"
    )
  num_clusters = config_lib.clusterings(config)
  in_epoch = num_examples // config.batch_size * config.batch_size
  if max(num_clusters) > in_epoch:
    raise UserError(
      f"{max(num_clusters)} clusters are more than the {in_epoch} images in "
      "the whole batches of an epoch; lower num_clusters, extra_clusters or "
      "batch_size"
    )
  labels = labels_lib.no_labels(num_examples, num_clusters)
  n, d = labels.previous.shape[0], config.model.embedding_dim
  return DeepClusterV2State(
    Samples(
      *labels,
      bank=jnp.zeros((n, config.data.views, d), dtype),
      in_bank=jnp.zeros((n,), bool),
    ),
    tuple(jnp.zeros((k, d)) for k in num_clusters),
    jnp.zeros((config.num_clusters,), jnp.int32),
  )


def recluster_due(config: Config, step: int) -> bool:
  """Returns whether an epoch begins."""
  return step % config_lib.steps_per_epoch(config) == 0


def recluster(
  config: Config, state: DeepClusterV2State, passes, step: int
) -> DeepClusterV2State:
  """Clusters the bank, which the steps of the next epoch then fill again.

  Args:
    config: Reads `num_clusters`, `extra_clusters`, `seed`, `deepcluster_v2.*`.
    state: The bank as the epoch before left it; empty at step 0.
    passes: At step 0, over augmented views in training mode; of the images in
      the whole batches of the first epoch, as the official loader drops the
      rest. Those are not trained on until the epoch after, without clusters.
    step: Decides, with the seed, where k-means starts.

  Source: main_deepclusterv2.py:init_memory, cluster_memory.
  """
  samples = state.samples
  if step == 0:
    bank, in_bank = passes.of_epoch()
    samples = samples._replace(
      bank=bank.astype(samples.bank.dtype), in_bank=in_bank
    )

  assignments, centroids, sizes = _cluster(
    samples.bank,
    samples.in_bank,
    jax.random.fold_in(jax.random.key(config.seed), step),
    num_clusters=config_lib.clusterings(config),
    kmeans_iters=config.deepcluster_v2.kmeans_iters,
  )
  samples = samples._replace(
    assignments=assignments,
    previous=samples.assignments[:, 0],
    in_bank=jnp.zeros_like(samples.in_bank),
  )
  return DeepClusterV2State(samples, centroids, sizes)


# Compiled once for all re-clusterings.
@functools.partial(jax.jit, static_argnames=("num_clusters", "kmeans_iters"))
def _cluster(bank, in_bank, key, *, num_clusters, kmeans_iters):
  """Returns clusters [n, h], centroids [k, d] of each, the first's sizes."""
  clusterings = []
  for h, k in enumerate(num_clusters):
    # The views take turns.
    x = bank[:, h % bank.shape[1]]
    start = spherical.random_start(x, in_bank, jax.random.fold_in(key, h), k)
    clusterings.append(
      spherical.spherical_kmeans(x, in_bank, start, kmeans_iters)
    )
  centroids, assignments = zip(*clusterings, strict=True)
  sizes = labels_lib.cluster_sizes(assignments[0], num_clusters[0])
  return jnp.stack(assignments, axis=1), centroids, sizes


def targets(
  config: Config, state: DeepClusterV2State, views, batch, step
) -> Targets:
  """Returns the clusters of the batch's images."""
  del config, views, step
  return Targets(state.samples.assignments[batch["index"]])


def temperature(config: Config) -> float:
  """Returns tau."""
  return config.deepcluster_v2.temperature


def loss(config: Config, views, targets: Targets, state: DeepClusterV2State):
  """Returns the cross-entropy, a mean over the clusterings, and what to log.

  Every view, large or small, is to say the cluster of its image. Images
  without one do not count.

  Source: main_deepclusterv2.py:train, with cross_entropy(ignore_index=-100).
  """
  value, tau = jnp.float32(0), temperature(config)
  accuracies = []
  for h, centroids in enumerate(state.centroids):
    clusters = targets.clusters[:, h]
    valid = clusters < centroids.shape[0]
    num_valid = jnp.maximum(1, jnp.sum(valid))
    index = jnp.where(valid, clusters, 0)
    for outputs in views:
      scores = jnp.matmul(outputs.embeddings, centroids.T, precision="highest")
      entropies = losses.cross_entropy(scores / tau, index)
      value += jnp.sum(jnp.where(valid, entropies, 0)) / num_valid
      hits = valid & (jnp.argmax(scores, axis=1) == index)
      accuracies.append(jnp.sum(hits) / num_valid)
  value /= len(state.centroids) * len(views)
  return value, {"train/cluster_accuracy": accuracies[0]}


def after_step(
  config: Config, state: DeepClusterV2State, views, targets, batch, step
):
  """Writes the embeddings of the large views into the bank.

  They are clustered when the next epoch begins.

  Args:
    config: Unused.
    state: The state that `targets` saw.
    views: Of the train-mode network, the large ones first.
    targets: Unused.
    batch: With `index`, int32 [b]; of duplicates the last one wins.
    step: Unused.

  Returns:
    The state and the `cluster/...` scalars of the first clustering.
  """
  del config, targets, step
  samples = state.samples
  n, num_large, _ = samples.bank.shape
  index = batch["index"]
  index = jnp.where(labels_lib.last_occurrence(index), index, n)
  rows = jnp.stack([view.embeddings for view in views[:num_large]], axis=1)
  samples = samples._replace(
    bank=samples.bank.at[index].set(
      rows.astype(samples.bank.dtype), mode="drop"
    ),
    in_bank=samples.in_bank.at[index].set(True, mode="drop"),
  )
  scalars = labels_lib.size_scalars(state.sizes)
  return state._replace(samples=samples), scalars


METHOD = Method(
  NAME="DeepCluster-v2",
  init=init,
  targets=targets,
  loss=loss,
  after_step=after_step,
  KEYS=(
    "deepcluster_v2.kmeans_iters",
    "deepcluster_v2.temperature",
    "deepcluster_v2.memory_dtype",
    "extra_clusters",
    "data.views",
    "data.small_views",
    "data.small_size",
    "data.small_crop_scale",
    "model.embedding_dim",
  ),
  # Centroids take its place. Officially they are the weights of a layer that is
  # overwritten every epoch and frozen for longer than there are steps.
  HEAD="none",
  recluster_due=recluster_due,
  recluster=recluster,
  temperature=temperature,
)
