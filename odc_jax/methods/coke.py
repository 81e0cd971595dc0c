"""Unsupervised Visual Representation Learning by Online Constrained K-Means.

Qian, Xu, Hu, Li, Jin, CVPR 2022, arXiv:2105.11527. Official code: CoKe
(coke/builder_single_view.py, coke/builder_double_view.py,
main_single_view.py, main_double_view.py).

k-means, one batch after the other, under the constraint that no cluster gets
too few images; its centroids are the means of the embeddings of this epoch. The
network learns to tell apart the clusters that its images had an epoch ago, by
the centroids of an epoch ago: nothing that it compares with moves while it
learns.

With one view the clusters are hard until `stage`, and averaged over epochs from
then on; with two, each view also learns from the other's soft assignment, and
small crops from those of both.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from odc_jax import labels as labels_lib
from odc_jax import losses
from odc_jax import mesh as mesh_lib
from odc_jax.clustering import size_constraint as duals_lib
from odc_jax.clustering import spherical
from odc_jax.config import Config
from odc_jax.config import check as config_lib
from odc_jax.errors import UserError
from odc_jax.labels import Labels
from odc_jax.methods import coke_slots
from odc_jax.methods.coke_slots import Slots
from odc_jax.methods.method import Method


class Samples(NamedTuple):
  """The memory of every image; rows split over the devices.

  Attributes:
    assignments: As in `memory.Labels`.
    previous: As in `memory.Labels`.
    slots: With one view; () with two.
  """

  assignments: Int[Array, "n h"]
  previous: Int[Array, "n"]
  slots: Slots | tuple[()]


class CoKeState(NamedTuple):
  """Clusters and centroids; the latter for each clustering, replicated.

  Attributes:
    samples: Clusters of all images.
    sizes: Images in each cluster of the first clustering.
    previous: P, the unit centroids of the epoch before.
    current: C, those of this epoch.
    counts: n, the images that were assigned in this epoch.
    duals: rho of the size constraint.
  """

  samples: Samples
  sizes: Int[Array, "k"]
  previous: tuple[Float[Array, "k d"], ...]
  current: tuple[Float[Array, "k d"], ...]
  counts: tuple[Int[Array, "k"], ...]
  duals: tuple[Float[Array, "k"], ...]


class Targets(NamedTuple):
  """The targets of the step's loss.

  Attributes:
    clusters: y, the new clusters of the batch, a column for each clustering.
    goals: What each view's probabilities are to be: [view][clustering].
  """

  clusters: Int[Array, "b h"]
  goals: tuple[tuple[Float[Array, "b k"], ...], ...]


def idle(values: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
  """Yields each key that does nothing, and the key that is the reason."""
  if values.get("data.views") == 1:
    yield "coke.hard_weight", "data.views"
  else:
    for key in ("stage", "num_slots", "slot_temperature"):
      yield f"coke.{key}", "data.views"
  if not values.get("data.small_views"):
    yield "coke.large_weight", "data.small_views"
  if not values.get("coke.prediction_weight"):
    yield "model.predictor", "coke.prediction_weight"


def init(config: Config, num_examples: int, key) -> CoKeState:
  """Returns random unit centroids, and images without clusters.

  Args:
    config: Reads `num_clusters`, `extra_clusters`, `model.embedding_dim`,
      `model.predictor`, `data.views`, `data.small_views`, `coke.*`.
    num_examples: Images in the data set.
    key: Draws the centroids.

  Raises:
    UserError: If there are not one or two views, small crops beside a single
      view, no slot, or no predictor where its loss has a weight.
  """
  ks, coke = config_lib.clusterings(config), config.coke
  views, small_views = config.data.views, config.data.get("small_views", 0)
  if views not in (1, 2):
    raise UserError(
      f"data.views={views}: CoKe takes 1 or 2 large views of an image; set "
      "--config.data.views"
    )
  if views == 1 and small_views:
    raise UserError(
      f"data.small_views={small_views}: small crops learn from two large "
      "views; set --config.data.views=2"
    )
  if coke.prediction_weight and not config.model.get("predictor", False):
    raise UserError(
      f"coke.prediction_weight={coke.prediction_weight} without a predictor; "
      "set --config.model.predictor or a weight of 0"
    )
  labels = labels_lib.no_labels(num_examples, ks)
  slots = ()
  if views == 1:
    if coke.num_slots < 1:
      raise UserError(
        f"coke.num_slots={coke.num_slots}: an image needs a slot for its "
        "cluster; set --config.coke.num_slots=5"
      )
    shape = (*labels.assignments.shape, coke.num_slots)
    slots = coke_slots.no_slots(shape)
  d = config.model.embedding_dim
  centroids = tuple(
    spherical.normalize(jax.random.normal(jax.random.fold_in(key, h), (k, d)))
    for h, k in enumerate(ks)
  )
  return CoKeState(
    Samples(labels.assignments, labels.previous, slots),
    sizes=jnp.zeros((ks[0],), jnp.int32),
    previous=centroids,
    current=centroids,
    counts=tuple(jnp.zeros((k,), jnp.int32) for k in ks),
    duals=tuple(jnp.zeros((k,)) for k in ks),
  )


def temperature(config: Config) -> float:
  """Returns T: logits are cosines with the centroids."""
  return config.coke.temperature


def _inputs(config: Config, views) -> Float[Array, "b d"]:
  """Returns what is clustered: x, or with two views (x^1 + x^2) / 2.

  Officially the mean is not scaled to unit length.
  """
  large = [view.embeddings for view in views[: config.data.views]]
  return jnp.mean(jnp.stack(large), axis=0)


def _stage(config: Config, step) -> tuple[Bool[Array, ""], Float[Array, ""]]:
  """Returns whether labels and centroids are averaged, and by which factor f.

  f = 1 / (epochs since `stage`, this one included). Two views have no such
  stage.
  """
  if config.data.views == 2:
    return jnp.bool_(False), jnp.float32(1)
  age = step // config_lib.steps_per_epoch(config) - config.coke.stage
  return age >= 0, 1 / jnp.maximum(age + 1, 1).astype(jnp.float32)


def _logits(x: Float[Array, "b d"], centroids: Float[Array, "k d"]):
  """Returns the dot products, float32."""
  return jnp.matmul(x, centroids.T, precision="highest")


def targets(config: Config, state: CoKeState, views, batch, step) -> Targets:
  """Assigns the batch, and says what the network is to learn of it.

  Args:
    config: Reads `num_clusters`, `extra_clusters`, `num_examples`,
      `batch_size`, `data.views`, `coke.*`.
    state: Before this step.
    views: The large views, then the small ones.
    batch: With `index`, int32 [b].
    step: The number of this step, from 0.

  Source: CoKe coke/builder_*.py: forward, get_label.
  """
  ks, index = config_lib.clusterings(config), batch["index"]
  averaged, factor = _stage(config, step)

  # y_i <- argmax_k x_i . C_k + rho_k; of P instead of C from `stage` on.
  x = _inputs(config, views)
  clusters = []
  for p, c, rho in zip(state.previous, state.current, state.duals, strict=True):
    scores = _logits(x, jnp.where(averaged, p, c)) + rho[None, :]
    clusters.append(jnp.argmax(scores, axis=1).astype(jnp.int32))
  clusters = jnp.stack(clusters, axis=1)

  # The cluster of the image's last visit, or at its first visit the new one.
  old = state.samples.assignments[index]
  visited = old < jnp.array(ks)[None, :]
  hard = jnp.where(visited, old, clusters)
  hard = tuple(jax.nn.one_hot(hard[:, h], k) for h, k in enumerate(ks))

  if config.data.views == 1:
    # In the stage's first epoch, with f = 1, there is nothing to average.
    soft = coke_slots.probabilities(
      Slots(*(array[index] for array in state.samples.slots)),
      ks,
      config.coke.slot_temperature,
    )
    goals = tuple(
      jnp.where((factor < 1) & (jnp.sum(p, axis=1, keepdims=True) > 0), p, one)
      for p, one in zip(soft, hard, strict=True)
    )
    return Targets(clusters, (goals,))

  # alpha onehot(y') + (1 - alpha) softmax(x P / T) of the other large view;
  # for small crops the mean of both.
  alpha = config.coke.hard_weight
  soft = tuple(
    tuple(
      jax.nn.softmax(_logits(view.embeddings, p) / config.coke.temperature)
      for p in state.previous
    )
    for view in views[:2]
  )
  both = tuple((one + two) / 2 for one, two in zip(*soft, strict=True))
  sources = (soft[1], soft[0], *[both] * (len(views) - 2))
  goals = tuple(
    tuple(
      alpha * one + (1 - alpha) * p for one, p in zip(hard, source, strict=True)
    )
    for source in sources
  )
  return Targets(clusters, goals)


def loss(config: Config, views, targets: Targets, state: CoKeState):
  """Returns the cross-entropy of predictions and projections, and what to log.

  beta CE(prediction) + (1 - beta) CE(projection), averaged over clusterings and
  large views. Small crops have the same, and the two are weighted.

  Source: CoKe main_single_view.py, main_double_view.py: train.
  """
  coke = config.coke
  beta = coke.prediction_weight

  def of(view, goals):
    """Returns the loss of a view."""
    values = []
    for p, goal in zip(state.previous, goals, strict=True):
      for x, weight in (
        (view.predictions, beta),
        (view.embeddings, 1 - beta),
      ):
        # A branch without weight may not be there.
        if weight:
          logits = _logits(x, p) / coke.temperature
          values.append(weight * losses.soft_cross_entropy(logits, goal))
    return jnp.mean(sum(values)) / len(goals)

  of_views = [of(*each) for each in zip(views, targets.goals, strict=True)]
  large = of_views[: config.data.views]
  small = of_views[config.data.views :]
  value = sum(large) / len(large)
  if small:
    share = coke.large_weight
    value = share * value + (1 - share) * sum(small) / len(small)
  accuracy = losses.accuracy(
    _logits(views[0].embeddings, state.previous[0]), targets.clusters[:, 0]
  )
  return value, {"train/cluster_accuracy": accuracy}


def add_batch(
  centroids: Float[Array, "k d"],
  counts: Int[Array, "k"],
  x: Float[Array, "b d"],
  clusters: Int[Array, "b"],
) -> tuple[Float[Array, "k d"], Int[Array, "k"], Int[Array, "k"]]:
  """Moves the centroids of a batch's clusters on; the others stay.

  C_k <- C_k n_k / (n_k + n^B_k) + sum_i x_i / (n_k + n^B_k). The first batch of
  an epoch that holds images of a cluster, n_k = 0, replaces its centroid.

  Args:
    centroids: C.
    counts: n, in this epoch.
    x: What was clustered.
    clusters: Its clusters.

  Returns:
    Centroids, not normalised; n with the batch; and the batch's own, n^B.

  Source: CoKe coke/builder_*.py: update_center_mini_batch.
  """
  k = centroids.shape[0]
  # The whole batch on every device: [b, d] moves, not [k, d] from each. And a
  # matrix product, because adding row by row is not deterministic on a GPU.
  x, clusters = mesh_lib.replicate((x, clusters))
  members = jnp.arange(k)[:, None] == clusters[None, :]
  sums = jnp.matmul(members.astype(jnp.float32), x, precision="highest")
  of_batch = duals_lib.count(clusters, k)
  before, after = counts[:, None], jnp.maximum(counts + of_batch, 1)[:, None]
  moved = centroids * (before / after) + sums / after
  centroids = jnp.where(of_batch[:, None] > 0, moved, centroids)
  return centroids, counts + of_batch, of_batch


def after_step(
  config: Config, state: CoKeState, views, targets: Targets, batch, step
):
  """Moves centroids and duals on, and writes the new clusters.

  Args:
    config: Reads `num_examples`, `batch_size`, `data.views`, `coke.*`.
    state: The state that `targets` saw.
    views: Of this step.
    targets: Of this step.
    batch: With `index`, int32 [b].
    step: The number of this step, from 0.

  Returns:
    The state and the `cluster/...` scalars of `metrics.SCALARS`.

  Source: CoKe coke/builder_*.py, main_*.py: update_center after every epoch.
  """
  coke, index = config.coke, batch["index"]
  averaged, factor = _stage(config, step)
  steps_per_epoch = config_lib.steps_per_epoch(config)
  x = _inputs(config, views)

  current, counts, duals = [], [], []
  for h, rho in enumerate(state.duals):
    c, n, of_batch = add_batch(
      state.current[h], state.counts[h], x, targets.clusters[:, h]
    )
    # Unit length after every batch; from `stage` on only after the epoch.
    hit = (of_batch > 0)[:, None] & ~averaged
    current.append(jnp.where(hit, spherical.normalize(c), c))
    counts.append(n)
    duals.append(
      duals_lib.step(
        rho,
        of_batch,
        index.shape[0],
        learning_rate=coke.dual_learning_rate,
        ratio=coke.size_ratio,
      )
    )
  current, counts = tuple(current), tuple(counts)

  previous, current, counts = jax.lax.cond(
    (step + 1) % steps_per_epoch == 0,
    lambda: _next_epoch(state.previous, current, counts, averaged, factor),
    lambda: (state.previous, current, counts),
  )

  labels = Labels(state.samples.assignments, state.samples.previous)
  labels = labels_lib.at_epoch_start(labels, step, steps_per_epoch)
  labels, sizes, change = labels_lib.relabel(
    labels, state.sizes, index, targets.clusters
  )
  slots = state.samples.slots
  if isinstance(slots, Slots):
    slots = jax.lax.cond(
      averaged,
      lambda slots: coke_slots.write(slots, index, targets.clusters, factor),
      lambda slots: slots,
      slots,
    )
  return CoKeState(
    Samples(labels.assignments, labels.previous, slots),
    sizes,
    previous,
    current,
    counts,
    tuple(duals),
  ), {"cluster/label_change": change, **labels_lib.size_scalars(sizes)}


def _next_epoch(previous, current, counts, averaged, factor):
  """Returns P, C and n with which the next epoch begins.

  P <- C; from `stage` on the running average over the epochs, and C <- P.
  """
  previous = tuple(
    jnp.where(
      averaged,
      spherical.normalize((1 - factor) * p + factor * spherical.normalize(c)),
      c,
    )
    for p, c in zip(previous, current, strict=True)
  )
  return previous, previous, jax.tree.map(jnp.zeros_like, counts)


METHOD = Method(
  NAME="CoKe",
  init=init,
  targets=targets,
  loss=loss,
  after_step=after_step,
  KEYS=(
    "coke.temperature",
    "coke.dual_learning_rate",
    "coke.size_ratio",
    "coke.hard_weight",
    "coke.prediction_weight",
    "coke.large_weight",
    "coke.stage",
    "coke.num_slots",
    "coke.slot_temperature",
    "extra_clusters",
    "data.views",
    "data.small_views",
    "data.small_size",
    "data.small_crop_scale",
    "model.embedding_dim",
    "model.predictor",
  ),
  idle=idle,
  HEAD="none",
  # Officially every view goes through the network on its own.
  VIEWS_TOGETHER=False,
  # Its loss is a mean over clusterings of several K.
  SPARED=("chance",),
  temperature=temperature,
)
