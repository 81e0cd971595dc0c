"""Local Aggregation for Unsupervised Learning of Visual Embeddings.

Zhuang, Zhai, Yamins, ICCV 2019, arXiv:1903.12355. Official code:
neuroailab/LocalAggregation (TensorFlow, by the paper's author: instance.py,
instance_model.py); where its port to PyTorch differs (it averages over all
pairs of a batch), it is not followed.

A memory has an embedding of every image. An image's background neighbours are
the k most similar of them, its close neighbours those that share its cluster in
any of several k-means clusterings of the memory. The embedding moves towards
the close neighbours in the background, and away from the rest of it. The first
epochs are instance recognition with noise (NCE).

Neither the similarities, [b, n], nor the rows of the background, [b, k, d],
exist at any time. The loss of an embedding v, and its gradient by v, are sums
over the memory: `targets` computes both in chunks, each device over its own
rows, and `loss` is a linear function of v with this value and this gradient.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from odc_jax import labels as labels_lib
from odc_jax import mesh as mesh_lib
from odc_jax.clustering import assign, background, spherical
from odc_jax.clustering.kmeans import kmeans
from odc_jax.config import Config
from odc_jax.config import check as config_lib
from odc_jax.errors import UserError
from odc_jax.mesh import AXIS, REPLICATED, ROWS
from odc_jax.methods.method import Method

_EPS = 1e-7
# NCE's normaliser of ImageNet, an image (instance_model.py).
_Z = 2876934.2 / 1281167


class Samples(NamedTuple):
  """The memory of every image; rows split over the devices.

  Attributes:
    assignments: A column for each clustering, [0, k); k before the first
      clustering, and on pad rows.
    previous: Those of the first clustering before the last re-clustering.
    bank: Unit rows.
  """

  assignments: Int[Array, "n h"]
  previous: Int[Array, "n"]
  bank: Float[Array, "n d"]


class LocalAggregationState(NamedTuple):
  """The memory.

  Attributes:
    samples: Of every image.
    sizes: Images in each cluster of the first clustering.
  """

  samples: Samples
  sizes: Int[Array, "k"]


class Targets(NamedTuple):
  """The loss of every image, and how it changes with its embedding.

  Attributes:
    losses: At the embeddings of this step.
    gradients: Of these by the unit embeddings.
  """

  losses: Float[Array, "b"]
  gradients: Float[Array, "b d"]


def init(config: Config, num_examples: int, key) -> LocalAggregationState:
  """Returns a memory of random unit rows, and no clusters.

  Args:
    config: Reads `num_clusters`, `model.embedding_dim`, `local_aggregation.*`.
    num_examples: Images in the data set.
    key: Of the rows.

  Raises:
    UserError: If the background has more images than there are.
  """
  section = config.local_aggregation
  if not 0 < section.num_background <= num_examples:
    raise UserError(
      f"local_aggregation.num_background={section.num_background} is not "
      f"between 1 and the {num_examples} images; choose another with "
      "--config.local_aggregation.num_background"
    )
  labels = labels_lib.no_labels(
    num_examples, (config.num_clusters,) * section.num_clusterings
  )
  n, d = labels.previous.shape[0], config.model.embedding_dim
  bank = jax.random.uniform(key, (n, d), minval=-1.0, maxval=1.0)
  return LocalAggregationState(
    Samples(*labels, bank=spherical.normalize(bank)),
    jnp.zeros((config.num_clusters,), jnp.int32),
  )


def warm_steps(config: Config) -> int:
  """Returns how many steps of instance recognition come first."""
  return round(
    config.local_aggregation.warm_epochs * config_lib.steps_per_epoch(config)
  )


def recluster_due(config: Config, step: int) -> bool:
  """Returns whether an epoch, or local aggregation, begins.

  During the warm start nothing but the log and the evaluations reads clusters.
  """
  starts_epoch = step % config_lib.steps_per_epoch(config) == 0
  return starts_epoch or step == warm_steps(config)


def recluster(
  config: Config, state: LocalAggregationState, passes, step: int
) -> LocalAggregationState:
  """Clusters the memory several times, from different starts.

  Args:
    config: Reads `num_clusters`, `num_examples`, `seed`, `local_aggregation.*`.
    state: With the memory as the last step left it.
    passes: Unused: the memory is what is clustered.
    step: Decides, with the seed, where k-means starts.
  """
  del passes
  samples, section = state.samples, config.local_aggregation
  assignments, sizes = _cluster(
    samples.bank,
    jax.random.fold_in(jax.random.key(config.seed), step),
    num_examples=config.num_examples,
    num_clusters=config.num_clusters,
    num_clusterings=section.num_clusterings,
    kmeans_iters=section.kmeans_iters,
  )
  samples = samples._replace(
    assignments=assignments, previous=samples.assignments[:, 0]
  )
  return LocalAggregationState(samples, sizes)


# Compiled once for all re-clusterings.
@functools.partial(
  jax.jit,
  static_argnames=(
    "num_examples",
    "num_clusters",
    "num_clusterings",
    "kmeans_iters",
  ),
)
def _cluster(
  x, key, *, num_examples, num_clusters, num_clusterings, kmeans_iters
):
  """Returns clusters [n, h], and the sizes of the first clustering."""
  found = [
    kmeans(
      x,
      jax.random.fold_in(key, h),
      num_examples=num_examples,
      num_clusters=num_clusters,
      num_iters=kmeans_iters,
    )
    for h in range(num_clusterings)
  ]
  assignments = jnp.stack([each.assignments for each in found], axis=1)
  return assignments, found[0].sizes


def targets(
  config: Config, state: LocalAggregationState, views, batch, step
) -> Targets:
  """Returns the losses of the batch, and their gradients.

  Args:
    config: Reads `num_examples`, `batch_size`, `seed`, `local_aggregation.*`.
    state: The memory from before this step.
    views: Of the batch, with unit embeddings.
    batch: With `index`, int32 [b].
    step: The number of this step, from 0.
  """
  v, index = views[0].embeddings, batch["index"]
  section, n = config.local_aggregation, config.num_examples
  t = section.temperature

  def warm():
    key = jax.random.fold_in(jax.random.key(config.seed), step)
    noise = draw_noise(key, index.shape[0], section.num_background, n)
    return instance_targets(state.samples, v, index, noise, n, t)

  def local():
    samples = state.samples
    sums = background.aggregate(
      samples.bank,
      samples.assignments,
      v,
      samples.assignments[index],
      num_examples=n,
      num_background=section.num_background,
      temperature=t,
    )
    return local_targets(sums)

  return jax.lax.cond(step < warm_steps(config), warm, local)


def draw_noise(key, b: int, k: int, num_examples: int) -> Int[Array, "b k"]:
  """Returns k images for each of a batch, each of all equally likely."""
  return jax.random.randint(key, (b, k), 0, num_examples)


def instance_targets(
  samples: Samples,
  v: Float[Array, "b d"],
  index: Int[Array, "b"],
  noise: Int[Array, "b k"],
  num_examples: int,
  temperature: float,
) -> Targets:
  """Returns the loss of instance recognition with noise.

  -ln Pr_i / (Pr_i + c + 1e-7) - sum_j ln c / (Pr_j + c + 1e-7), with
  Pr_j = e^(v m_j / t) / Z, c = k / n and a fixed Z.

  Args:
    samples: Of all images.
    v: Unit embeddings.
    index: Of the images.
    noise: Others, drawn at random.
    num_examples: n.
    temperature: t.

  Source: instance.py; instance_model.py: InstanceModel.get_losses.
  """
  z, c = _Z * num_examples, noise.shape[1] / num_examples

  def data(similarity):
    log_pr = similarity / temperature - jnp.log(z)
    return jnp.log(jnp.exp(log_pr) + c + _EPS) - log_pr

  def others(similarity):
    pr = jnp.exp(similarity / temperature) / z
    return jnp.log(pr + c + _EPS) - jnp.log(c)

  own = _over_rows(samples.bank, v, index[:, None], data)
  rest = _over_rows(samples.bank, v, noise, others)
  return Targets(own[0] + rest[0], own[1] + rest[1])


def _over_rows(
  bank: Float[Array, "n d"],
  v: Float[Array, "b d"],
  index: Int[Array, "b k"],
  term: Callable[[Array], Array],
) -> tuple[Float[Array, "b"], Float[Array, "b d"]]:
  """Returns sum_j term(v m_j) over given rows, and its gradient by v.

  Each device takes those of them that it has, some columns at a time.

  Args:
    bank: Of all images, m.
    v: Unit embeddings.
    index: Rows of the bank for each of them.
    term: Of similarities, element by element.
  """

  def local(bank, v, index):
    n, (b, k) = bank.shape[0], index.shape
    first = jax.lax.axis_index(AXIS) * n
    size = assign.chunk_rows(k, b * v.shape[1], None)

    def add(sums, start, fresh):
      place = jax.lax.dynamic_slice_in_dim(index, start, size, axis=1) - first
      mine = (place >= 0) & (place < n) & fresh[None, :]
      rows = bank[jnp.clip(place, 0, n - 1)]
      s = jnp.einsum("bd,bcd->bc", v, rows, precision="highest")
      value, slope = jax.jvp(term, (s,), (jnp.ones_like(s),))
      value, slope = (jnp.where(mine, x, 0.0) for x in (value, slope))
      total, change = sums
      return total + jnp.sum(value, axis=1), change + jnp.einsum(
        "bc,bcd->bd", slope, rows, precision="highest"
      )

    zeros = jnp.zeros((b,)), jnp.zeros(v.shape)
    return jax.lax.psum(assign.over_chunks(k, size, add, zeros), AXIS)

  return mesh_lib.per_shard(
    local, in_specs=(ROWS, REPLICATED, REPLICATED), out_specs=REPLICATED
  )(bank, *mesh_lib.replicate((v, index)))


def local_targets(sums: background.Sums) -> Targets:
  """Returns the loss of local aggregation, eq. 4: -ln(P(C and B) / P(B)).

  With 1e-7 in the logarithm: an image without close neighbours in its
  background has a constant loss. It is not its own neighbour by force.

  Source: instance_model.py: InstanceModel.get_cluster_classification_loss.
  """
  relative = sums.close / sums.background
  # d (C / B) / dv = (C' - C / B B') / B.
  change = sums.by_close - relative[:, None] * sums.by_background
  change /= sums.background[:, None]
  return Targets(
    -jnp.log(relative + _EPS), -change / (relative + _EPS)[:, None]
  )


def loss(config: Config, views, targets: Targets, state: LocalAggregationState):
  """Returns the mean loss, with the gradient that `targets` found."""
  del config, state
  v = views[0].embeddings
  # 0, but for its gradient.
  moved = jnp.sum(targets.gradients * (v - jax.lax.stop_gradient(v)), axis=1)
  return jnp.mean(targets.losses + moved), {}


def after_step(
  config: Config, state: LocalAggregationState, views, targets, batch, step
):
  """Mixes the embeddings into the memory.

  Args:
    config: Reads `local_aggregation.momentum`.
    state: The state that `targets` saw.
    views: Of the batch, from before the optimiser's step.
    targets: Unused.
    batch: With `index`, int32 [b]; of duplicates the last one wins.
    step: Unused.

  Returns:
    The state and the `cluster/...` scalars of the first clustering.
  """
  del targets, step
  samples, index = state.samples, batch["index"]
  m, n = config.local_aggregation.momentum, samples.bank.shape[0]
  rows = m * samples.bank[index] + (1 - m) * views[0].embeddings
  target = jnp.where(labels_lib.last_occurrence(index), index, n)
  bank = samples.bank.at[target].set(spherical.normalize(rows), mode="drop")
  return state._replace(samples=samples._replace(bank=bank)), (
    labels_lib.size_scalars(state.sizes)
  )


def finish(
  config: Config, state: LocalAggregationState, head, params, embeddings
) -> LocalAggregationState:
  """Clusters the unit embeddings of all images once, in evaluation mode.

  Those of the memory are of augmented images and of several steps, and its
  last clustering is an epoch old. The other clusterings stay.

  Args:
    config: Reads `num_clusters`, `num_examples`, `seed`, `local_aggregation.*`.
    state: After the last step.
    head: Unused: there is none.
    params: Unused.
    embeddings: Of all images, [rows, d].
  """
  del head, params
  assignments, sizes = _cluster(
    spherical.normalize(embeddings),
    jax.random.key(config.seed),
    num_examples=config.num_examples,
    num_clusters=config.num_clusters,
    num_clusterings=1,
    kmeans_iters=config.local_aggregation.kmeans_iters,
  )
  samples = state.samples
  others = samples.assignments[:, 1:]
  samples = samples._replace(
    assignments=jnp.concatenate([assignments, others], axis=1)
  )
  return LocalAggregationState(samples, sizes)


METHOD = Method(
  NAME="Local Aggregation",
  init=init,
  targets=targets,
  loss=loss,
  after_step=after_step,
  KEYS=(
    "local_aggregation.temperature",
    "local_aggregation.momentum",
    "local_aggregation.num_background",
    "local_aggregation.num_clusterings",
    "local_aggregation.kmeans_iters",
    "local_aggregation.warm_epochs",
    "model.embedding_dim",
  ),
  HEAD="none",
  recluster_due=recluster_due,
  recluster=recluster,
  finish=finish,
)
