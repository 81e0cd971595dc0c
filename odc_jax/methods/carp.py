"""Consistent assignment of views over random partitions.

Silva, Ramirez Rivera, CARP, NeurIPS 2023, arXiv:2310.12692. Official code:
sthalles/carp (main_carp.py, modules/carp_loss.py, modules/random_partition.py).

Every step compares the views of its images with k learnt prototypes. These are
cut at random into blocks; within each block a view is assigned by a softmax,
and so is another view by a slower copy of the network. The two assignments are
to be alike, and the prototypes of a block to be used equally often on average.
Nothing is kept of an image.

One block of all prototypes and no slower copy are what is known of CARL (Silva,
Ramirez Rivera, arXiv:2112.15421), which has no public code.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from odc_jax import labels
from odc_jax.config import Config
from odc_jax.config import check as config_lib
from odc_jax.errors import UserError
from odc_jax.labels import Labels
from odc_jax.methods import schedules
from odc_jax.methods.method import Method, Teacher, evaluates_teacher

# Probabilities are kept this far from 0 and 1 in front of logarithms.
EPSILON = 2.0**-23


class CARPState(NamedTuple):
  """The last cluster of every image.

  Attributes:
    samples: Clusters, for those who read them; the method does not.
    sizes: Images in each cluster.
  """

  samples: Labels
  sizes: Int[Array, "k"]


class Targets(NamedTuple):
  """What the views' assignments are to be like.

  Attributes:
    blocks: The prototypes of each of the m blocks, without repetition.
    assignments: Of every large view, a softmax within each block.
    clusters: The nearest prototype of the first view, of all of them.
  """

  blocks: Int[Array, "m s"]
  assignments: tuple[Float[Array, "b m s"], ...]
  clusters: Int[Array, "b"]


def has_teacher(config: Config) -> bool:
  """Returns `carp.teacher`: whether a slower copy gives the targets."""
  return config.carp.teacher


def idle(values: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
  """Yields each key that does nothing, and the key that is the reason."""
  if not values.get("carp.teacher"):
    yield "carp.teacher_decay", "carp.teacher"
    yield "eval.network", "carp.teacher"


def block_size(config: Config) -> int:
  """Returns how many prototypes a block has; `carp.block_size`, 0: all."""
  return config.carp.block_size or config.num_clusters


def init(config: Config, num_examples: int, key) -> CARPState:
  """Returns no clusters.

  Args:
    config: Reads `num_clusters`, `data.views`, `data.small_views`, `carp.*`.
    num_examples: Images in the data set.
    key: Unused: nothing here is random.

  Raises:
    UserError: If there is no other view to be assigned alike, or a number of
      the section `carp` makes no sense.
  """
  del key
  carp = config.carp
  if config.data.views + config.data.get("small_views", 0) < 2:
    raise UserError(
      "carp assigns two views of an image alike: take two or more with "
      "--config.data.views"
    )
  if carp.block_size and not 2 <= carp.block_size <= config.num_clusters:
    raise UserError(
      f"carp.block_size={carp.block_size} is not between 2 and "
      f"num_clusters={config.num_clusters}; 0 is all"
    )
  if carp.teacher and not all(0 <= m <= 1 for m in carp.teacher_decay):
    raise UserError(
      f"carp.teacher_decay={carp.teacher_decay} is not between 0 and 1"
    )
  return CARPState(
    labels.no_labels(num_examples, (config.num_clusters,)),
    jnp.zeros((config.num_clusters,), jnp.int32),
  )


def teacher_decay(config: Config, step) -> Float[Array, "*t"]:
  """Returns m, along a cosine between the two of `carp.teacher_decay`."""
  first, last = config.carp.teacher_decay
  return schedules.cosine(config, first, last, step)


def blocks_of_step(config: Config, step) -> Int[Array, "m s"]:
  """Returns a random partition of the prototypes into blocks of s.

  The same for all views and images; prototypes left over take no part.

  Args:
    config: Reads `seed`, `num_clusters`, `carp.block_size`.
    step: The number of the step, from 0.

  Source: modules/random_partition.py: RandomPartition.
  """
  k, size = config.num_clusters, block_size(config)
  key = jax.random.fold_in(jax.random.key(config.seed), step)
  # In one block the order makes no difference.
  ids = jnp.arange(k) if size == k else jax.random.permutation(key, k)
  return ids[: k // size * size].reshape(-1, size)


def assigned(
  logits: Float[Array, "b k"], blocks: Int[Array, "m s"]
) -> Float[Array, "b m s"]:
  """Returns softmax(logits) within each block."""
  return jax.nn.softmax(logits[:, blocks], axis=-1)


def targets(config: Config, state: CARPState, views, batch, step) -> Targets:
  """Returns the blocks and the assignments of the large views.

  Args:
    config: Reads `seed`, `num_clusters`, `data.views`, `carp.block_size`.
    state: Unused.
    views: Of the batch: `student` and `teacher`, or those of the one network.
    batch: Unused.
    step: The number of this step, from 0.
  """
  del state, batch
  large = getattr(views, "teacher", views)[: config.data.views]
  blocks = blocks_of_step(config, step)
  logits = [view.logits[0] for view in large]
  return Targets(
    blocks,
    tuple(assigned(of_view, blocks) for of_view in logits),
    jnp.argmax(logits[0], axis=1).astype(jnp.int32),
  )


def consistency(
  assignments: Float[Array, "b m s"], others: Float[Array, "b m s"]
) -> Float[Array, ""]:
  """Returns the mean over images and blocks of -ln <p, q>."""
  alike = jnp.sum(assignments * others, axis=-1)
  return -jnp.mean(jnp.log(jnp.clip(alike, EPSILON, 1 - EPSILON)))


def unevenness(assignments: list[Float[Array, "b m s"]]) -> Float[Array, ""]:
  """Returns the mean over blocks of KL(r || uniform), r of the batch.

  Args:
    assignments: Of which r is the mean, over all of these and all images.
  """
  r = jnp.mean(jnp.stack([jnp.mean(p, axis=0) for p in assignments]), axis=0)
  negative = jnp.sum(r * jnp.log(jnp.clip(r, EPSILON, 1 - EPSILON)), axis=-1)
  return jnp.log(r.shape[-1]) + jnp.mean(negative)


def loss(config: Config, views, targets: Targets, state: CARPState):
  """Returns consistency plus unevenness, and what to log.

  Source: modules/carp_loss.py: CARPLoss.
  """
  del config, state
  student = getattr(views, "student", views)
  found = [assigned(view.logits[0], targets.blocks) for view in student]
  pairs = [
    consistency(found[v], others)
    for w, others in enumerate(targets.assignments)
    for v in range(len(found))
    if v != w
  ]
  alike = jnp.mean(jnp.stack(pairs))
  uneven = unevenness([*found, *targets.assignments])
  return alike + uneven, {
    "train/consistency": alike,
    "train/unevenness": uneven,
  }


def after_step(
  config: Config, state: CARPState, views, targets: Targets, batch, step
):
  """Keeps the clusters.

  Args:
    config: Reads `num_examples`, `batch_size`.
    state: That `targets` saw.
    views: Unused.
    targets: With the clusters.
    batch: With `index`, int32 [b].
    step: The number of this step, from 0.

  Returns:
    The state and the `cluster/...` scalars of `logs.scalars`.
  """
  del views
  samples = labels.at_epoch_start(
    state.samples, step, config_lib.steps_per_epoch(config)
  )
  samples, sizes, label_change = labels.relabel(
    samples, state.sizes, batch["index"], targets.clusters[:, None]
  )
  return CARPState(samples, sizes), {
    "cluster/label_change": label_change,
    **labels.size_scalars(sizes),
  }


_COLLAPSE = (
  "Likely cause: the assignments collapse. Lower optimizer.learning_rate, or "
  "take smaller blocks (carp.block_size)"
)

METHOD = Method(
  NAME="CARP",
  init=init,
  targets=targets,
  loss=loss,
  after_step=after_step,
  KEYS=(
    "carp.block_size",
    "carp.teacher",
    "carp.teacher_decay",
    "data.views",
    "data.small_views",
    "data.small_size",
    "data.small_crop_scale",
    "eval.network",
  ),
  idle=idle,
  HEAD="directions",
  # Its clusters are those of a moving network: an image may well get another.
  SPARED=("restless",),
  ADVICE=dict.fromkeys(("sizes", "largest", "empty", "chance"), _COLLAPSE),
  teacher=Teacher(
    teacher_decay, "before", evaluates_teacher, present=has_teacher
  ),
)
