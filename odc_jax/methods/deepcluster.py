"""Deep Clustering for Unsupervised Learning of Visual Features.

Caron, Bojanowski, Joulin, Douze, ECCV 2018, arXiv:1807.05520. Official code:
facebookresearch/deepcluster (main.py, clustering.py, util.py); ResNet-50, and
the re-weighted loss, in OpenSelfSup (hooks/deepcluster_hook.py,
models/deepcluster.py).

Turns between two things: k-means on what the network makes of all images, and
an epoch of ordinary classification of the clusters found, by a classifier that
starts anew, with images drawn uniformly over the clusters.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from odc_jax import labels, losses
from odc_jax.clustering import pca
from odc_jax.clustering.kmeans import kmeans
from odc_jax.clustering.sampler import uniform_over_clusters
from odc_jax.config import Config
from odc_jax.config import check as config_lib
from odc_jax.errors import UserError
from odc_jax.labels import Labels
from odc_jax.methods.method import Method

_CHOICES = {
  "sampler": ("facebook", "openselfsup", "none"),
  "kmeans_init": ("random", "k-means++"),
}


class DeepClusterState(NamedTuple):
  """The last clustering.

  Attributes:
    samples: The cluster of every image, and that of the clustering before.
    sizes: Images in each cluster.
  """

  samples: Labels
  sizes: Int[Array, "k"]


class Targets(NamedTuple):
  """The classifier's labels: the clusters y of the batch."""

  clusters: Int[Array, "b"]


def idle(values: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
  """Yields each key that does nothing, and the key that is the reason."""
  if values.get("deepcluster.sampler") != "none":
    yield "data.sampling", "deepcluster.sampler"
  # Without weights a mean of groups' means is the mean.
  if (
    not values.get("deepcluster.reweight_power")
    and values.get("model.neck") != "nonlinear"
  ):
    yield "model.group_size", "deepcluster.reweight_power"


def init(config: Config, num_examples: int, key) -> DeepClusterState:
  """Returns a state without clusters; `recluster` comes before the first step.

  Args:
    config: Reads `num_clusters`, `deepcluster.*`.
    num_examples: Images in the data set.
    key: Unused: nothing here is random.

  Raises:
    UserError: If one of the choices in the section `deepcluster` does not
      exist, or if there is more than one clustering.
  """
  del key
  for name, choices in _CHOICES.items():
    if config.deepcluster[name] not in choices:
      raise UserError(
        f"unknown deepcluster.{name} {config.deepcluster[name]!r}; choose "
        f"{', '.join(choices)}"
      )
  if config.deepcluster.recluster_every < 1:
    raise UserError(
      f"deepcluster.recluster_every={config.deepcluster.recluster_every} is no "
      "number of epochs; take 1 or more"
    )
  num_clusters = config_lib.clusterings(config)
  if len(num_clusters) > 1:
    raise UserError(
      "deepcluster has one clustering: extra_clusters="
      f"{num_clusters[1:]} is to be ()"
    )
  return DeepClusterState(
    labels.no_labels(num_examples, num_clusters),
    jnp.zeros((config.num_clusters,), jnp.int32),
  )


def recluster_due(config: Config, step: int) -> bool:
  """Returns whether an epoch begins, or the first of `recluster_every`."""
  steps_per_epoch = config_lib.steps_per_epoch(config)
  return step % (config.deepcluster.recluster_every * steps_per_epoch) == 0


def recluster(
  config: Config, state: DeepClusterState, passes, step: int
) -> DeepClusterState:
  """Clusters all images by what the network makes of them now.

  k-means on the embeddings (behind the fully connected layers of AlexNet and
  VGG, before their last ReLU), reduced by PCA, whitened, and scaled to unit
  length.

  Args:
    config: Reads `num_clusters`, `num_examples`, `seed`, `deepcluster.*`.
    state: The clusters before this step.
    passes: Over the images, in evaluation mode.
    step: Decides, with the seed, where k-means starts.

  Source: main.py:main, clustering.py:preprocess_features, Kmeans.cluster.
  """
  dc = config.deepcluster
  assignments, sizes = _cluster(
    passes.embeddings(),
    jax.random.fold_in(jax.random.key(config.seed), step),
    num_examples=config.num_examples,
    num_clusters=config.num_clusters,
    pca_dim=dc.pca_dim,
    kmeans_iters=dc.kmeans_iters,
    kmeans_init=dc.kmeans_init,
  )
  previous = state.samples.assignments[:, 0]
  return DeepClusterState(Labels(assignments[:, None], previous), sizes)


# Compiled once for all re-clusterings.
@functools.partial(
  jax.jit,
  static_argnames=(
    "num_examples",
    "num_clusters",
    "pca_dim",
    "kmeans_iters",
    "kmeans_init",
  ),
)
def _cluster(
  embeddings,
  key,
  *,
  num_examples,
  num_clusters,
  pca_dim,
  kmeans_iters,
  kmeans_init,
):
  """Returns the cluster of every image, [n], and the sizes, [k]."""
  rows = jnp.arange(embeddings.shape[0])
  clustering = kmeans(
    pca.whiten(embeddings, rows < num_examples, pca_dim),
    key,
    num_examples=num_examples,
    num_clusters=num_clusters,
    num_iters=kmeans_iters,
    init=kmeans_init,
  )
  return clustering.assignments, clustering.sizes


def sampler(
  config: Config, clusters: Int[np.ndarray, "n"], step: int
) -> Int[np.ndarray, "m"] | None:
  """Draws the images of the epochs until the next re-clustering.

  Args:
    config: Reads `num_clusters`, `batch_size`, `seed`, `deepcluster.*`.
    clusters: Of every image, without padding.
    step: At which they were found; decides, with the seed, what is drawn.

  Returns:
    Whole batches; None for "none": `data.sampling` holds.

  Source: "facebook": util.py:UnifLabelSampler. "openselfsup":
  datasets/loader/sampler.py:set_uniform_indices.
  """
  dc = config.deepcluster
  if dc.sampler == "none":
    return None
  steps_per_epoch = config_lib.steps_per_epoch(config)
  seeds = {
    "facebook": (config.seed, step),
    "openselfsup": config.seed + step // steps_per_epoch,
  }
  drawn = uniform_over_clusters(
    clusters,
    config.num_clusters,
    dc.recluster_every * len(clusters),
    seeds[dc.sampler],
    count_empty=dc.sampler == "openselfsup",
  )
  return drawn[: dc.recluster_every * steps_per_epoch * config.batch_size]


def targets(
  config: Config, state: DeepClusterState, views, batch, step
) -> Targets:
  """Returns the clusters of the batch's images."""
  del config, views, step
  return Targets(state.samples.assignments[batch["index"], 0])


def class_weights(sizes: Int[Array, "k"], power: float) -> Float[Array, "k"]:
  """Returns w_k ~ 1 / n_k^power, summing to one.

  Source: OpenSelfSup models/deepcluster.py:set_reweight.
  """
  weights = (1 / (sizes + 1e-10)) ** power
  return weights / jnp.sum(weights)


def loss(config: Config, views, targets: Targets, state: DeepClusterState):
  """Returns the mean cross-entropy (eq. 1) and what to log.

  With `reweight_power` above 0 the mean is weighted, which the official code
  leaves to the sampler.
  """
  (outputs,) = views
  (logits,) = outputs.logits
  value = losses.weighted_cross_entropy(
    logits,
    targets.clusters,
    class_weights(state.sizes, config.deepcluster.reweight_power),
    config.model.group_size,
  )
  accuracy = losses.accuracy(logits, targets.clusters)
  return value, {"train/cluster_accuracy": accuracy}


def after_step(
  config: Config, state: DeepClusterState, views, targets, batch, step
):
  """Leaves the clusters as they are until the next re-clustering."""
  del config, views, targets, batch, step
  return state, labels.size_scalars(state.sizes)


METHOD = Method(
  NAME="DeepCluster",
  init=init,
  targets=targets,
  loss=loss,
  after_step=after_step,
  KEYS=(
    "deepcluster.pca_dim",
    "deepcluster.kmeans_iters",
    "deepcluster.kmeans_init",
    "deepcluster.recluster_every",
    "deepcluster.sampler",
    "deepcluster.reweight_power",
    "model.group_size",
  ),
  idle=idle,
  # The classifier has nothing to do with the clusters of another clustering.
  FRESH=("head",),
  recluster_due=recluster_due,
  recluster=recluster,
  sampler=sampler,
)
