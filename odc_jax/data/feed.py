"""Batches, wherever the images are: with the host, or on the devices.

Of images on the devices a batch has no pixels, but what is to be cut out of
which. All else is the same: the order, the ids, the boxes, and where a run goes
on.
"""

import time
from collections.abc import Generator, Sequence
from typing import Any, TypeAlias

import grain
import numpy as np
from jaxtyping import Float, Int

from odc_jax.data import boxes, decode, loader
from odc_jax.data import order as order_lib
from odc_jax.data.decode import Crop
from odc_jax.data.loader import Batch
from odc_jax.data.resident import Cuts, Images, Rows, Taken
from odc_jax.data.source import Source
from odc_jax.mesh import padded_rows

# Images with the host or on the devices, or features of them on the devices.
Data: TypeAlias = Source | Images | Rows
Batches: TypeAlias = grain.DatasetIterator[Batch] | Generator[Batch]


def train_batches(data: Data, config: Any, **options: Any) -> Batches:
  """Starts reading training batches, for ever.

  Args:
    data: where the images are.
    config: as for `loader.train_batches`.
    **options: further arguments of `loader.train_batches`.

  Returns:
    What `loader.train_batches` does. Of images on the devices "image" is a
    `Cuts`, of features a `Taken`, and "bad" is empty: it was told when they
    were read.

  Raises:
    UserError: as there.
  """
  if isinstance(data, Images | Rows):
    return _drawn_to_train(data, config, **options)
  return loader.train_batches(data, config, **options)


def eval_batches(
  data: Source | Images, *, num_threads: int, **options: Any
) -> Batches:
  """Starts reading every example once.

  Args:
    data: where the images are.
    num_threads: as for `loader.eval_batches`.
    **options: further arguments of `loader.eval_batches`.

  Returns:
    What `loader.eval_batches` does. Of images on the devices "image" is a
    `Cuts` of one view, and "bad" is empty; and a process has the rows of its
    own devices, whose labels and keys it knows.

  Raises:
    UserError: as there.
  """
  if isinstance(data, Images):
    return _cuts_to_evaluate(data, **options)
  return loader.eval_batches(data, num_threads=num_threads, **options)


def _drawn_to_train(
  data: Images | Rows,
  config: Any,
  *,
  batch_size: int,
  crops: Sequence[Crop],
  seed: int,
  start_step: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  order: Int[np.ndarray, " m"] | None = None,
) -> grain.DatasetIterator[Batch]:
  """Starts drawing the batches of `train_batches`."""
  local = loader.local_size(batch_size, process_count)
  rows = np.arange(process_index * local, (process_index + 1) * local)

  def draw(step: int) -> Batch:
    start = time.thread_time()
    n = len(data.labels) if isinstance(data, Rows) else len(data.sizes)
    index = order_lib.batch_indices(
      n, batch_size, step, seed, config.sampling, order
    )[rows]
    if isinstance(data, Rows):
      image = Taken(data.features, sum(crop.views for crop in crops))
    else:
      sizes = data.sizes[index]
      drawn = boxes.random_boxes(seed, step, rows, sizes, crops)
      sides = [crop.size for crop in crops]
      image = _cuts(data, sizes, drawn, sides, crops[0].interpolation)
    return {
      "image": image,
      "index": index,
      "bad": [],
      "seconds": time.thread_time() - start,
    }

  # Ahead of the loop, in a thread: a millisecond or two each.
  steps = grain.MapDataset.range(start_step, 2**62).map(draw)
  return iter(steps.to_iter_dataset(loader.read_options(1, config.prefetch)))


def _cuts_to_evaluate(
  images: Images,
  *,
  batch_size: int,
  resize: int,
  crop: int,
  interpolation: str = "bilinear",
  process_index: int = 0,
  process_count: int = 1,
) -> Generator[Batch]:
  """Yields the batches of `eval_batches`."""
  n, local = len(images.sizes), loader.local_size(batch_size, process_count)
  # All have as many batches, also those with fewer images.
  own = padded_rows(n) // process_count if process_count > 1 else n
  for start in range(0, own, local):
    first = process_index * own + start
    count = max(0, min(local, n - first, own - start))
    index = np.full(local, n, np.int32)
    index[:count] = np.arange(first, first + count)
    label = np.full(local, -1, np.int32)
    label[:count] = images.labels[start : start + count]
    sizes = np.ones((local, 2), np.int32)
    sizes[:count] = images.sizes[first : first + count]
    drawn = boxes.center_boxes(sizes, resize, crop)
    yield {
      "image": _cuts(images, sizes, [drawn], [crop], interpolation),
      "index": index,
      "label": label,
      "key": images.keys[start : start + count] + [""] * (local - count),
      "bad": [],
    }


def _cuts(
  images: Images,
  sizes: Int[np.ndarray, "b 2"],
  drawn: Sequence[Float[np.ndarray, "b _ 4"]],
  sides: Sequence[int],
  interpolation: str = "bilinear",
) -> Cuts:
  """Returns what is to be cut out, in pixels of the images as they are kept."""
  kept = decode.fitting_size(sizes, images.pixels.shape[1])
  scale = np.tile(kept / sizes, 2).astype(np.float32)[:, None]
  return Cuts(
    images.pixels,
    kept,
    tuple(box * scale for box in drawn),
    tuple(sides),
    interpolation,
  )
