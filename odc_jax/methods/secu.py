"""Stable Cluster Discrimination for Deep Clustering.

Qian, ICCV 2023, arXiv:2311.14310. Official code: SeCu (secu/builder.py,
secu/builder_imagenet.py, main.py).

One stage, and learnt centres. Every step assigns a batch to the centres under
a constraint that keeps clusters from running empty, then lets the centres learn
from the images assigned to them, only from these, and the network from the
clusters that its images had an epoch ago, with the centres as they were at the
start of this epoch.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from odc_jax import labels, losses
from odc_jax.clustering import size_constraint as duals_lib
from odc_jax.config import Config
from odc_jax.config import check as config_lib
from odc_jax.errors import UserError
from odc_jax.labels import Labels
from odc_jax.methods.method import Method

_CONSTRAINTS = ("size", "entropy")


class SeCuState(NamedTuple):
  """Clusters of all images, and what their assignment takes of every cluster.

  Attributes:
    samples: Clusters of all images; a column for each clustering.
    sizes: n, the images in each cluster, for each clustering.
    centers: p, the unit centres when this epoch began, for each clustering.
    duals: rho of the size constraint, for each clustering; () without it.
  """

  samples: Labels
  sizes: tuple[Int[Array, "k"], ...]
  centers: tuple[Float[Array, "k d"], ...]
  duals: tuple[Float[Array, "k"], ...]


class Targets(NamedTuple):
  """The targets of the step's losses.

  Attributes:
    clusters: y, the new clusters of the batch, a column for each clustering.
    centers: p, for each clustering.
    goals: t, what each view's probabilities are to be: [view][clustering].
  """

  clusters: Int[Array, "b h"]
  centers: tuple[Float[Array, "k d"], ...]
  goals: tuple[tuple[Float[Array, "b k"], ...], ...]


def idle(values: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
  """Yields each key that does nothing, and the key that is the reason."""
  if values.get("secu.constraint") == "size":
    yield "secu.entropy_weight", "secu.constraint"
  else:
    yield "secu.dual_learning_rate", "secu.constraint"
    yield "secu.size_ratio", "secu.constraint"


def init(config: Config, num_examples: int, key) -> SeCuState:
  """Returns a state of images without clusters.

  Args:
    config: Reads `num_clusters`, `extra_clusters`, `model.embedding_dim`,
      `data.views`, `secu.constraint`.
    num_examples: Images in the data set.
    key: Unused: the centres are in the network.

  Raises:
    UserError: If there is no such constraint, or there are not two views.
  """
  del key
  secu, ks = config.secu, config_lib.clusterings(config)
  if secu.constraint not in _CONSTRAINTS:
    raise UserError(
      f"unknown secu.constraint {secu.constraint!r}; choose "
      f"{' or '.join(_CONSTRAINTS)}"
    )
  if config.data.views != 2:
    raise UserError(
      f"data.views={config.data.views}: SeCu compares two views of an image; "
      "set --config.data.views=2"
    )
  return SeCuState(
    labels.no_labels(num_examples, ks),
    sizes=tuple(jnp.zeros((k,), jnp.int32) for k in ks),
    centers=tuple(jnp.zeros((k, config.model.embedding_dim)) for k in ks),
    duals=tuple(jnp.zeros((k,)) for k in ks if secu.constraint == "size"),
  )


def temperature(config: Config) -> float:
  """Returns tau_x: the head's logits are cosines."""
  return config.secu.temperature


def entropy_cost(
  sizes: Int[Array, "k"], old: Int[Array, "b"]
) -> Float[Array, "b k"]:
  """Returns by how much sum_k q_k log q_k grows as an image changes clusters.

  q are the clusters' shares of the images. Every image of a batch is judged by
  the same sizes.

  Args:
    sizes: n.
    old: Each image's cluster l, which it would leave; k: it has none.

  Source: SeCu secu/builder.py: get_label_entropy.
  """
  k = sizes.shape[0]
  n = sizes.astype(jnp.float32)
  total = jnp.sum(n)

  def phi(q):
    return jnp.where(q > 0, q * jnp.log(jnp.where(q > 0, q, 1)), 0.0)

  # A new image: phi(q_k + 1 / (n + 1)) - phi(q_k), nothing is left behind.
  q = n / (total + 1)
  join = jnp.where(total > 0, phi(q + 1 / (total + 1)) - phi(q), 0.0)
  # One that has a cluster: phi(q_l - 1/n) - phi(q_l) + phi(q_k + 1/n) -
  # phi(q_k); 0 where it stays.
  share = 1 / jnp.maximum(total, 1)
  q = n * share
  leave = phi(q - share) - phi(q)
  move = phi(q + share) - phi(q)
  moves = leave.at[old].get(mode="clip")[:, None] + move[None, :]
  stays = jnp.arange(k)[None, :] == old[:, None]
  moves = jnp.where(stays, 0.0, moves)
  return jnp.where((old < k)[:, None], moves, join[None, :])


def targets(config: Config, state: SeCuState, views, batch, step) -> Targets:
  """Assigns the batch, and says what the network is to learn of it.

  Args:
    config: Reads `num_clusters`, `extra_clusters`, `num_examples`,
      `batch_size`, `secu.*`.
    state: Before this step.
    views: Two, with cosines to the current centres for logits.
    batch: With `index`, int32 [b].
    step: The number of this step, from 0.

  Source: SeCu secu/builder.py: forward, get_label_*; main.py: train.
  """
  secu, ks = config.secu, config_lib.clusterings(config)
  epoch_begins = step % config_lib.steps_per_epoch(config) == 0
  centers = jax.lax.cond(
    epoch_begins, lambda: views[0].prototypes, lambda: state.centers
  )
  old = state.samples.assignments[batch["index"]]

  # y_i <- argmax_k of the mean cosine of the views, and of their predictions
  # where there are any, with c_k, under the constraint.
  branches = [view.logits for view in views]
  branches += [view.prediction_logits for view in views if _predicts(view)]
  clusters = []
  for h in range(len(ks)):
    scores = sum(cosines[h] for cosines in branches) / len(branches)
    if secu.constraint == "size":
      scores += state.duals[h][None, :]
    else:
      scores -= secu.entropy_weight * entropy_cost(state.sizes[h], old[:, h])
    clusters.append(jnp.argmax(scores, axis=1).astype(jnp.int32))
  clusters = jnp.stack(clusters, axis=1)

  # t^1 = tau y' + (1 - tau) softmax(x^2 p / tau_x) and the other way round; y'
  # is what the image was assigned to at its last visit, or is now at its first.
  visited = old < jnp.array(ks)[None, :]
  hard = jnp.where(visited, old, clusters)
  goals = tuple(
    tuple(
      secu.hard_weight * jax.nn.one_hot(hard[:, h], k)
      + (1 - secu.hard_weight)
      * jax.nn.softmax(_cosines(other.embeddings, p) / secu.temperature)
      for h, (k, p) in enumerate(zip(ks, centers, strict=True))
    )
    for other in reversed(views)
  )
  return Targets(clusters, centers, goals)


def _predicts(view) -> bool:
  """Returns whether the network has a predictor, as on ImageNet."""
  return view.predictions is not None


def _cosines(x: Float[Array, "b d"], centers: Float[Array, "k d"]):
  """Returns the dot products of unit rows, float32."""
  return jnp.matmul(x, centers.T, precision="highest")


def center_loss(
  logits: Float[Array, "b k"], clusters: Int[Array, "b"]
) -> Float[Array, "b"]:
  """Returns the cross-entropy, whose gradient flows into the positive alone.

  Of the K logits of an image only that of its own cluster has a gradient,
  1 - its probability: no batch pushes away the centres of which it happens to
  hold no image. That is what makes learning the centres stable.

  Source: SeCu secu/builder.py: forward (the detached negatives).
  """
  own = jnp.arange(logits.shape[1])[None, :] == clusters[:, None]
  logits = jnp.where(own, logits, jax.lax.stop_gradient(logits))
  return losses.cross_entropy(logits, clusters)


def loss(config: Config, views, targets: Targets, state: SeCuState):
  """Returns the loss of the network and the centres, and what to log.

  Each is a mean over clusterings and views, and over projections and
  predictions where there is a predictor.

  Source: SeCu main.py, main_imagenet.py: train.
  """
  del state
  secu = config.secu
  of_centers, of_network = [], []
  for view, goals in zip(views, targets.goals, strict=True):
    branches = [(view.embeddings, view.logits)]
    if _predicts(view):
      branches.append((view.predictions, view.prediction_logits))
    for x, cosines in branches:
      for h, (p, goal) in enumerate(zip(targets.centers, goals, strict=True)):
        of_centers.append(
          center_loss(
            cosines[h] / secu.center_temperature, targets.clusters[:, h]
          )
        )
        logits = _cosines(x, p) / secu.temperature
        of_network.append(losses.soft_cross_entropy(logits, goal))
  value_centers = jnp.mean(jnp.stack(of_centers))
  value_network = jnp.mean(jnp.stack(of_network))
  accuracy = losses.accuracy(
    _cosines(views[0].embeddings, targets.centers[0]), targets.clusters[:, 0]
  )
  return value_network + value_centers, {
    "train/center_loss": value_centers,
    "train/cluster_accuracy": accuracy,
  }


def after_step(
  config: Config, state: SeCuState, views, targets: Targets, batch, step
):
  """Writes the new clusters and moves the duals on.

  Args:
    config: Reads `num_examples`, `batch_size`, `secu.*`.
    state: The state that `targets` saw.
    views: Unused.
    targets: Of this step.
    batch: With `index`, int32 [b].
    step: The number of this step, from 0.

  Returns:
    The state and the `cluster/...` scalars of `metrics.SCALARS`.
  """
  del views
  secu, index = config.secu, batch["index"]
  samples = labels.at_epoch_start(
    state.samples, step, config_lib.steps_per_epoch(config)
  )
  old = samples.assignments[index]
  samples, first, change = labels.relabel(
    samples, state.sizes[0], index, targets.clusters
  )
  others = tuple(
    labels.resize(sizes, index, old[:, h], targets.clusters[:, h])
    for h, sizes in enumerate(state.sizes[1:], start=1)
  )
  duals = tuple(
    duals_lib.step(
      rho,
      duals_lib.count(targets.clusters[:, h], rho.shape[0]),
      index.shape[0],
      learning_rate=secu.dual_learning_rate,
      ratio=secu.size_ratio,
    )
    for h, rho in enumerate(state.duals)
  )
  return SeCuState(samples, (first, *others), targets.centers, duals), {
    "cluster/label_change": change,
    **labels.size_scalars(first),
  }


METHOD = Method(
  NAME="SeCu",
  init=init,
  targets=targets,
  loss=loss,
  after_step=after_step,
  KEYS=(
    "secu.constraint",
    "secu.dual_learning_rate",
    "secu.size_ratio",
    "secu.entropy_weight",
    "secu.temperature",
    "secu.center_temperature",
    "secu.hard_weight",
    "extra_clusters",
    "data.views",
    "model.embedding_dim",
    "model.predictor",
  ),
  idle=idle,
  HEAD="centers",
  # Officially every view goes through the network on its own.
  VIEWS_TOGETHER=False,
  # Its loss is a mean over clusterings of several K, with another added.
  SPARED=("chance",),
  temperature=temperature,
)
