"""The recent clusters of images, averaged over epochs: CoKe's slots.

An image has a few slots, each for a cluster and the running average of how
often it was the image's. CoKe with one view learns from them from its `stage`
on.

Source: CoKe (CVPR 2022), coke/builder_single_view.py.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from odc_jax import labels as labels_lib

# The cluster in unused slots, officially (torch.ones), with a value of 0. It is
# a cluster like any other, so that its images find it in an unused slot too.
_UNUSED = 1


class Slots(NamedTuple):
  """The recent clusters of images, from `stage` on.

  Attributes:
    clusters: Of every image and clustering.
    values: Their running averages over the epochs; 0 where a slot is unused.
  """

  clusters: Int[Array, "n h s"]
  values: Float[Array, "n h s"]


def no_slots(shape: tuple[int, ...]) -> Slots:
  """Returns slots [n, h, s] that are all unused."""
  return Slots(jnp.full(shape, _UNUSED, jnp.int32), jnp.zeros(shape))


def probabilities(
  slots: Slots, num_clusters: tuple[int, ...], temperature: float
) -> tuple[Float[Array, "b k"], ...]:
  """Returns the softmax of value / temperature over the clusters in slots.

  Rows of zeros where an image has none. Slots with the same cluster add up.

  Args:
    slots: Of a batch.
    num_clusters: k of every clustering.
    temperature: Below 1 it prefers clusters of many epochs.

  Source: CoKe coke/builder_single_view.py: get_soft_label.
  """
  result = []
  for h, k in enumerate(num_clusters):
    value = jnp.zeros((slots.clusters.shape[0], k))
    for s in range(slots.clusters.shape[2]):
      here = jnp.arange(k)[None, :] == slots.clusters[:, h, s][:, None]
      value += jnp.where(here, slots.values[:, h, s][:, None], 0.0)
    exp = jnp.where(value > 0, jnp.exp(value / temperature), 0.0)
    norm = jnp.sum(exp, axis=1, keepdims=True)
    result.append(exp / jnp.where(norm > 0, norm, 1))
  return tuple(result)


def update(
  slots: Slots, clusters: Int[Array, "b h"], factor: Float[Array, ""]
) -> Slots:
  """Averages the new clusters of a batch into its slots.

  v <- (1 - f) v + f where the slot has the image's new cluster. One that is in
  no slot takes that of the least value, and the others are scaled to keep
  sum v = 1.

  Args:
    slots: Of a batch.
    clusters: The new ones.
    factor: f.

  Source: CoKe coke/builder_single_view.py: update_label.
  """
  num_slots = slots.clusters.shape[2]
  number = jnp.arange(num_slots)[None, None, :]
  matches = slots.clusters == clusters[:, :, None]
  known = jnp.any(matches, axis=2)
  last = num_slots - 1 - jnp.argmax(matches[:, :, ::-1], axis=2)
  # An image that has no values yet begins with its first slot.
  least = jnp.argmin(slots.values, axis=2)
  empty = jnp.sum(slots.values, axis=2) <= 0
  chosen = jnp.where(empty, 0, jnp.where(known, last, least))
  here = number == chosen[:, :, None]
  evicts = (empty | ~known)[:, :, None]
  kept = jnp.where(here & evicts, 0.0, slots.values)
  rest = jnp.sum(kept, axis=2, keepdims=True)
  kept = jnp.where(evicts & (rest > 0), kept / jnp.maximum(rest, 1e-12), kept)
  values = (1 - factor) * kept + factor * here
  # The first slot of an image begins with all of the weight.
  values = jnp.where(empty[:, :, None], here.astype(jnp.float32), values)
  return Slots(jnp.where(here, clusters[:, :, None], slots.clusters), values)


def write(
  slots: Slots,
  index: Int[Array, "b"],
  clusters: Int[Array, "b h"],
  factor: Float[Array, ""],
) -> Slots:
  """Averages the new clusters of a batch into the slots of all images.

  Args:
    slots: Of all images.
    index: The batch's rows in them; of duplicates the last one wins.
    clusters: As for `update`.
    factor: As for `update`.
  """
  n = slots.values.shape[0]
  rows = Slots(slots.clusters[index], slots.values[index])
  rows = update(rows, clusters, factor)
  target = jnp.where(labels_lib.last_occurrence(index), index, n)
  return Slots(
    slots.clusters.at[target].set(rows.clusters, mode="drop"),
    slots.values.at[target].set(rows.values, mode="drop"),
  )
