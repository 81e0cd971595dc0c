"""Unsupervised visual representation learning via mutual information.

Lee, Lee, Lee, Mutual Information Regularized Assignment (MIRA), NeurIPS 2022,
arXiv:2211.02284. Official code: movinghoon/MIRA (train.py).

Every step compares the views of its images with k learnt prototypes. A slower
copy of the network looks at the large views; their pseudo-labels stay near its
softmax and carry as much information about the images as they can, found by a
fixed point over the batch. Every view is to predict the labels of another one.
Clusters may have any size. Nothing is kept of an image.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from odc_jax import labels, losses
from odc_jax.clustering.mutual_information import regularized_assignment
from odc_jax.config import Config
from odc_jax.config import check as config_lib
from odc_jax.errors import UserError
from odc_jax.labels import Labels
from odc_jax.methods import schedules
from odc_jax.methods.method import Method, Teacher, evaluates_teacher


class MIRAState(NamedTuple):
  """The last cluster of every image.

  Attributes:
    samples: Clusters, for those who read them; the method does not.
    sizes: Images in each cluster.
  """

  samples: Labels
  sizes: Int[Array, "k"]


class Targets(NamedTuple):
  """The labels of every large view, which the other views predict."""

  assignments: tuple[Float[Array, "b k"], ...]


def init(config: Config, num_examples: int, key) -> MIRAState:
  """Returns no clusters.

  Args:
    config: Reads `num_clusters`, `data.views`, `data.small_views`, `mira.*`.
    num_examples: Images in the data set.
    key: Unused: nothing here is random.

  Raises:
    UserError: If there is no other view to predict labels from, or a number of
      the section `mira` makes no sense.
  """
  del key
  mira = config.mira
  if config.data.views + config.data.get("small_views", 0) < 2:
    raise UserError(
      "mira predicts the labels of a view from another one: take two or more "
      "with --config.data.views"
    )
  if min(mira.temperature, mira.teacher_temperature, mira.num_iters) <= 0:
    raise UserError(
      f"mira.temperature={mira.temperature}, "
      f"teacher_temperature={mira.teacher_temperature} and "
      f"num_iters={mira.num_iters} have to be above 0"
    )
  for name in ("beta", "teacher_decay"):
    if not all(0 <= value <= 1 for value in mira[name]):
      raise UserError(f"mira.{name}={mira[name]} is not between 0 and 1")
  if max(mira.beta) == 1:
    raise UserError(f"mira.beta={mira.beta} has to be below 1")
  return MIRAState(
    labels.no_labels(num_examples, (config.num_clusters,)),
    jnp.zeros((config.num_clusters,), jnp.int32),
  )


def teacher_decay(config: Config, step) -> Float[Array, "*t"]:
  """Returns m, along a cosine between the two of `mira.teacher_decay`."""
  first, last = config.mira.teacher_decay
  return schedules.cosine(config, first, last, step)


def beta(config: Config, step) -> Float[Array, "*t"]:
  """Returns beta, along a cosine between the two of `mira.beta`."""
  first, last = config.mira.beta
  return schedules.cosine(config, first, last, step)


def temperature(config: Config) -> float:
  """Returns tau_t: what is evaluated is the target network."""
  return config.mira.teacher_temperature


def targets(config: Config, state: MIRAState, views, batch, step) -> Targets:
  """Returns the labels of the large views.

  Args:
    config: Reads `num_epochs`, `num_examples`, `batch_size`, `mira.*`.
    state: Unused.
    views: Of the batch, `student` and `teacher`.
    batch: Unused.
    step: The number of this step, from 0.
  """
  del state, batch
  mira = config.mira
  found = (
    regularized_assignment(
      view.logits[0],
      mira.teacher_temperature,
      beta(config, step),
      mira.num_iters,
    )
    for view in views.teacher
  )
  return Targets(tuple(found))


def loss(config: Config, views, targets: Targets, state: MIRAState):
  """Returns the swapped prediction loss and what to log.

  The mean over the large views i, and over all others v, of
  -sum_k q_ik log softmax_k(logits_v / tau_s). Source: train.py: loss_func.
  """
  del state
  logits = [view.logits[0] / config.mira.temperature for view in views.student]
  terms = [
    jnp.mean(losses.soft_cross_entropy(logits[v], assignments))
    for i, assignments in enumerate(targets.assignments)
    for v in range(len(logits))
    if v != i
  ]
  clusters = jnp.argmax(targets.assignments[0], axis=1)
  accuracy = losses.accuracy(logits[1], clusters)
  return jnp.mean(jnp.stack(terms)), {"train/cluster_accuracy": accuracy}


def after_step(
  config: Config, state: MIRAState, views, targets: Targets, batch, step
):
  """Keeps the clusters.

  Args:
    config: Reads `num_examples`, `batch_size`.
    state: That `targets` saw.
    views: Unused.
    targets: The labels, the first of which say the clusters.
    batch: With `index`, int32 [b].
    step: The number of this step, from 0.

  Returns:
    The state and the `cluster/...` scalars of `logs.scalars`.
  """
  del views
  samples = labels.at_epoch_start(
    state.samples, step, config_lib.steps_per_epoch(config)
  )
  clusters = jnp.argmax(targets.assignments[0], axis=1).astype(jnp.int32)
  samples, sizes, label_change = labels.relabel(
    samples, state.sizes, batch["index"], clusters[:, None]
  )
  return MIRAState(samples, sizes), {
    "cluster/label_change": label_change,
    **labels.size_scalars(sizes),
  }


_COLLAPSE = (
  "Likely cause: the labels collapse. Raise mira.beta, lengthen "
  "optimizer.head_freeze_epochs, or lower optimizer.learning_rate"
)

METHOD = Method(
  NAME="MIRA",
  init=init,
  targets=targets,
  loss=loss,
  after_step=after_step,
  KEYS=(
    "mira.temperature",
    "mira.teacher_temperature",
    "mira.beta",
    "mira.num_iters",
    "mira.teacher_decay",
    "data.views",
    "data.small_views",
    "data.small_size",
    "data.small_crop_scale",
    "eval.network",
  ),
  HEAD="unit_prototypes",
  VIEWS_TOGETHER=False,
  # Its clusters are those of a batch: among other images an image may well
  # get another one.
  SPARED=("restless",),
  ADVICE=dict.fromkeys(("sizes", "largest", "empty", "chance"), _COLLAPSE),
  # Officially the prototypes are copied, which its authors found to be better.
  teacher=Teacher(teacher_decay, "first", evaluates_teacher, copied=("head",)),
  temperature=temperature,
)
