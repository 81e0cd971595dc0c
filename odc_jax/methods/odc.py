"""Online Deep Clustering for Unsupervised Representation Learning.

Zhan, Xie, Liu, Ong, Loy, CVPR 2020, arXiv:2006.10645. Official code:
OpenSelfSup (models/odc.py, memories/odc_memory.py, hooks/odc_hook.py).

Every step classifies a batch against the clusters that the sample memory holds
for its images, then writes their features into the memory, moves them to their
nearest centroids, and from time to time refreshes the centroids and dissolves
small clusters. Classifier, clusters and centroids drift together; nothing is
ever reset.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from odc_jax import labels, losses, memory
from odc_jax import mesh as mesh_lib
from odc_jax.clustering import assign, spherical
from odc_jax.clustering.kmeans import kmeans
from odc_jax.config import Config
from odc_jax.config import check as config_lib
from odc_jax.errors import UserError
from odc_jax.memory import CentroidMemory, SampleMemory
from odc_jax.methods.method import Method

_CHOICES = {
  "assign_metric": ("dot", "cosine", "l2"),
  "kmeans_init": ("random", "k-means++"),
  "memory_dtype": ("float32", "bfloat16"),
}


class ODCState(NamedTuple):
  """The sample memory, the centroid memory, and a counter.

  Attributes:
    samples: The sample memory.
    centroids: The centroid memory.
    dissolved: Small clusters dissolved since this epoch began.
  """

  samples: SampleMemory
  centroids: CentroidMemory
  dissolved: Int[Array, ""]


class Targets(NamedTuple):
  """The classifier's labels: the batch's clusters before this step."""

  clusters: Int[Array, "b"]


def init(config: Config, num_examples: int, key) -> ODCState:
  """Returns empty memories, to be filled by `recluster`.

  Args:
    config: Reads `num_clusters`, `model.embedding_dim`, `odc.memory_dtype`.
    num_examples: Images in the data set.
    key: Unused: nothing here is random.

  Raises:
    UserError: If one of the choices in the section `odc` does not exist.
  """
  del key
  for name, choices in _CHOICES.items():
    if config.odc[name] not in choices:
      raise UserError(
        f"unknown odc.{name} {config.odc[name]!r}; choose {', '.join(choices)}"
      )
  n, k = mesh_lib.padded_rows(num_examples), config.num_clusters
  d = config.model.embedding_dim
  return ODCState(
    SampleMemory(
      features=jnp.zeros((n, d), config.odc.memory_dtype),
      assignments=jnp.full((n,), k, jnp.int32),
      previous=jnp.full((n,), k, jnp.int32),
    ),
    CentroidMemory(
      centroids=jnp.zeros((k, d)),
      sums=jnp.zeros((k, d)),
      counts=jnp.zeros((k,), jnp.int32),
    ),
    dissolved=jnp.int32(0),
  )


def min_cluster(config: Config, num_examples: int) -> tuple[int, str]:
  """Returns a size below which a cluster is dissolved, and why this one."""
  mean = num_examples / config.num_clusters
  return max(1, round(0.16 * mean)), (
    f"0.16 of the mean cluster's {mean:.0f} images, as for ImageNet"
  )


def recluster_due(config: Config, step: int) -> bool:
  """Returns whether this is the first step; never again after it."""
  del config
  return step == 0


def recluster(config: Config, state: ODCState, passes, step: int) -> ODCState:
  """Fills both memories from a first k-means.

  k-means runs on the unit embeddings of the randomly initialised network in
  evaluation mode, without PCA or whitening. No cluster is left empty.

  Args:
    config: Reads `num_clusters`, `num_examples`, `seed`, `odc.*`.
    state: Empty memories.
    passes: Over the images, in evaluation mode.
    step: 0.

  Returns:
    Filled memories.

  Source: OpenSelfSup hooks/deepcluster_hook.py, odc_memory.py:init_memory.
  """
  del state, step
  embeddings = passes.embeddings()

  @jax.jit
  def fill(embeddings):
    features = spherical.normalize(embeddings.astype(jnp.float32))
    # Cluster the rows as the memory keeps them: a bfloat16 memory then needs no
    # float32 copy of all rows beside it.
    features = features.astype(config.odc.memory_dtype)
    clustering = kmeans(
      features,
      jax.random.key(config.seed),
      num_examples=config.num_examples,
      num_clusters=config.num_clusters,
      num_iters=config.odc.kmeans_iters,
      init=config.odc.kmeans_init,
    )
    samples = SampleMemory(
      features,
      clustering.assignments,
      clustering.assignments,
    )
    centroids = memory.recompute(samples, config.num_clusters)
    return ODCState(samples, centroids, jnp.int32(0))

  return fill(embeddings)


def grow(
  config: Config, state: ODCState, embeddings, num_before: int
) -> ODCState:
  """Takes new images into both memories, as `--on_change=extend` asks.

  Their features are the unit embeddings, their clusters those of the nearest
  centroids: as a first visit with a momentum of 1 would leave them. Centroids
  stay until the next step refreshes them. Not in the paper.

  Args:
    config: Reads `num_clusters`, `num_examples`, `odc.*`.
    state: Memories of the first `num_before` images.
    embeddings: Of all images, [n, d]; rows are padded.
    num_before: Images so far.

  Returns:
    Memories of all `num_examples` images.
  """
  k, num_examples = config.num_clusters, config.num_examples

  @jax.jit
  def fill(samples, centroids, embeddings):
    rows = jnp.arange(embeddings.shape[0])
    is_new = (rows >= num_before) & (rows < num_examples)
    features = spherical.normalize(embeddings.astype(jnp.float32))
    features = features.astype(config.odc.memory_dtype)
    nearest = assign.assign_all(
      features, centroids.centroids, num_examples, config.odc.assign_metric
    )
    more = embeddings.shape[0] - samples.assignments.shape[0]

    def longer(old, pad):
      return jnp.pad(old, (0, more), constant_values=pad)

    samples = SampleMemory(
      jnp.where(
        is_new[:, None],
        features,
        jnp.pad(samples.features, ((0, more), (0, 0))),
      ),
      jnp.where(is_new, nearest, longer(samples.assignments, k)),
      jnp.where(is_new, nearest, longer(samples.previous, k)),
    )
    sums = memory.recompute(samples, k)
    return samples, sums._replace(centroids=centroids.centroids)

  samples, centroids = fill(state.samples, state.centroids, embeddings)
  return ODCState(samples, centroids, state.dissolved)


def dissolved_clusters(state: ODCState) -> Int[Array, ""]:
  """Returns how many clusters were dissolved since this epoch began."""
  return state.dissolved


def targets(config: Config, state: ODCState, views, batch, step) -> Targets:
  """Returns the clusters that the memory holds for the batch."""
  del config, views, step
  _, clusters = memory.gather(state.samples, batch["index"])
  return Targets(clusters)


def class_weights(counts: Int[Array, "k"], power: float) -> Float[Array, "k"]:
  """Returns w_k ~ 1 / n_k^power, summing to one.

  The official code computes 1/2 whatever is configured; here the power is
  read. Source: OpenSelfSup models/odc.py:set_reweight.
  """
  weights = (1 / (counts + 1e-5)) ** power
  return weights / jnp.sum(weights)


def loss(config: Config, views, targets: Targets, state: ODCState):
  """Returns the re-weighted cross-entropy and what to log."""
  (outputs,) = views
  (logits,) = outputs.logits
  value = losses.weighted_cross_entropy(
    logits,
    targets.clusters,
    class_weights(state.centroids.counts, config.odc.reweight_power),
    config.model.group_size,
  )
  accuracy = losses.accuracy(logits, targets.clusters)
  return value, {"train/cluster_accuracy": accuracy}


def after_step(config: Config, state: ODCState, views, targets, batch, step):
  """Updates both memories with the features of this step's forward pass.

  In the official order: write the samples, assign them by the centroids of
  before, refresh the centroids, deal with small clusters.

  Args:
    config: Reads `odc.*`, `seed`, `batch_size`, `num_examples`.
    state: The memories that `targets` saw.
    views: One view of the train-mode network, embeddings [b, d].
    targets: Unused: the memory's rows are looked up with the features.
    batch: With `index`, int32 [b].
    step: The number of this step, from 0.

  Returns:
    The memories and the `cluster/...` scalars of `metrics.SCALARS`.
  """
  del targets
  odc = config.odc
  (outputs,) = views
  samples, centroids, dissolved_before = state
  index = batch["index"]
  steps_per_epoch = config_lib.steps_per_epoch(config)

  epoch_begins = step % steps_per_epoch == 0
  samples = labels.at_epoch_start(samples, step, steps_per_epoch)

  # F_i <- (1 - m) F_i + m f_i, scaled to unit length, and
  # y_i <- the centroid nearest to the new F_i.
  old_features, old_clusters = memory.gather(samples, index)
  new_features = memory.blend(old_features, outputs.embeddings, odc.momentum)
  # Per device and in chunks: 512 x 10,000 scores at once leave a CPU's cache,
  # which takes three times as long.
  new_clusters = assign.assign_all(
    new_features, centroids.centroids, index.shape[0], odc.assign_metric
  )
  label_change = jnp.mean(new_clusters != old_clusters)
  samples = memory.write(samples, index, new_features, new_clusters)
  centroids = memory.move(
    centroids,
    index,
    (old_features, old_clusters),
    (new_features, new_clusters),
  )

  # The running sums carry rounding along; once an epoch they are made exact.
  centroids = jax.lax.cond(
    (step + 1) % steps_per_epoch == 0,
    lambda: memory.recompute(samples, config.num_clusters)._replace(
      centroids=centroids.centroids
    ),
    lambda: centroids,
  )
  centroids = jax.lax.cond(
    (step + 1) % odc.centroid_every == 0,
    memory.refresh,
    lambda unchanged: unchanged,
    centroids,
  )

  key = jax.random.fold_in(jax.random.key(config.seed), step)
  samples, centroids, dissolved = jax.lax.cond(
    (step + 1) % odc.small_cluster_every == 0,
    lambda: memory.deal_with_small_clusters(
      samples, centroids, odc.min_cluster, key, metric=odc.assign_metric
    ),
    lambda: (samples, centroids, jnp.int32(0)),
  )

  dissolved_epoch = jnp.where(epoch_begins, 0, dissolved_before) + dissolved

  return ODCState(samples, centroids, dissolved_epoch), {
    "cluster/label_change": label_change,
    **labels.size_scalars(centroids.counts),
    "cluster/dissolved": dissolved,
    "cluster/dissolved_epoch": dissolved_epoch,
  }


METHOD = Method(
  NAME="ODC",
  init=init,
  targets=targets,
  loss=loss,
  after_step=after_step,
  KEYS=(
    "odc.momentum",
    "odc.assign_metric",
    "odc.reweight_power",
    "odc.centroid_every",
    "odc.small_cluster_every",
    "odc.min_cluster",
    "odc.memory_dtype",
    "odc.kmeans_iters",
    "odc.kmeans_init",
    "model.embedding_dim",
    "model.group_size",
  ),
  AUTO={"odc.min_cluster": min_cluster},
  ADVICE={
    "embeddings": "Likely cause: steps so large that the units behind a ReLU "
    "die. Lower optimizer.learning_rate or optimizer.weight_decay, or lengthen "
    "optimizer.warmup_epochs",
    "sizes": "Likely cause: small clusters are not refilled, or count for too "
    "little in the loss. Raise odc.min_cluster or odc.reweight_power, set "
    "odc.small_cluster_every=1 and odc.assign_metric=cosine, or lower "
    "num_clusters",
    "largest": "Likely cause: the embeddings collapse, and nothing holds the "
    "sizes apart. Lower optimizer.learning_rate or odc.momentum; raise "
    "odc.min_cluster or odc.reweight_power",
    "empty": "Likely cause: odc.min_cluster=0, or a long "
    "odc.small_cluster_every. Set odc.min_cluster to 1 or more and "
    "odc.small_cluster_every=1, or lower num_clusters",
    "dissolved": "Likely cause: odc.min_cluster is close to the mean size, or "
    "the embeddings move too fast. Lower odc.min_cluster, num_clusters, "
    "odc.momentum or optimizer.learning_rate",
    "restless": "Likely cause: the memory takes new features too fast, or the "
    "network changes too fast. Lower odc.momentum (0.1 helps where there are "
    "few images) or optimizer.learning_rate",
    "frozen": "Likely cause: the memory hardly takes new features, or the "
    "network has stopped learning. Raise odc.momentum, or lower "
    "optimizer.weight_decay",
    "trivial": "Likely cause: one cluster holds nearly everything, or the "
    "augmentation is too weak. Raise odc.min_cluster or num_clusters, widen "
    "data.crop_scale and augment.rotation, raise model.dropout",
    "chance": "Likely cause: optimizer.learning_rate or optimizer.weight_decay "
    "is too high, or the clusters change faster than they can be learnt. Lower "
    "these two, or odc.momentum",
  },
  recluster_due=recluster_due,
  recluster=recluster,
  dissolved_clusters=dissolved_clusters,
  grow=grow,
)
