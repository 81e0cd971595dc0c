"""Index-carrying batches, the same whatever reads them.

The batch of a step is a pure function of the seed and the step number: which
records, in which order, and which crop of each. So the position in the data is
the step number, resuming costs nothing, and neither threads nor worker
processes nor the number of hosts can change what the training sees.
"""

import contextlib
import functools
import multiprocessing
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import grain
import numpy as np
from absl import flags
from jaxtyping import Int

from odc_jax.data import decode, fixed_crops
from odc_jax.data import order as order_lib
from odc_jax.data.bad_images import BadImage
from odc_jax.data.decode import Crop
from odc_jax.data.fixed_crops import FixedCrop
from odc_jax.data.source import Record, Source
from odc_jax.errors import UserError

Batch = dict[str, Any]
Pixels = TypeVar("Pixels")

# So many unreadable images in a row are no accident.
_MOST_IN_A_ROW = 100


def train_batches(
  source: Source,
  config: Any,
  *,
  batch_size: int,
  crops: Sequence[Crop] | Sequence[FixedCrop],
  seed: int,
  start_step: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  order: Int[np.ndarray, " m"] | None = None,
) -> grain.DatasetIterator[Batch]:
  """Starts reading training batches, for ever.

  Process p gets rows [p * b_local, (p + 1) * b_local) of each global batch.
  An image that cannot be read is replaced by the next one that can.

  Args:
    source: the data set.
    config: section with `sampling`, `num_threads` and `num_workers` (processes;
      0 for threads in this one; each worker has `num_threads`) and `prefetch`
      (batches ahead; there is at least one for each thread).
    batch_size: of the global batch.
    crops: what to cut out of every image; one kind only of fixed ones.
    seed: of the order and of the crops.
    start_step: the step of the first batch.
    process_index: which of the processes this one is.
    process_count: how many share the global batch.
    order: as for `order.batch_indices`; for samplers that a method brings
      along.

  Returns:
    An iterator of {"image": for every kind of crop uint8 [b_local, v, h, w, 3],
    in a tuple, "index": int32 [b_local], "bad": list of the
    `BadImage`s that were met, "seconds": CPU time that the batch took}. Call
    `close()` when done: it ends the threads and workers.

  Raises:
    UserError: sizes that do not fit, unknown sampling; from the iterator:
      a hundred images in a row that cannot be read.
  """
  local = local_size(batch_size, process_count)
  # A mistake in the configuration is raised here, not out of a thread.
  order_lib.batch_indices(
    len(source), batch_size, start_step, seed, config.sampling, order
  )
  read = _ReadTrainBatch(
    source,
    # Plain values: a ConfigDict need not travel to the workers.
    indices=functools.partial(
      order_lib.batch_indices,
      len(source),
      batch_size,
      seed=seed,
      sampling=config.sampling,
      order=order,
    ),
    rows=range(process_index * local, (process_index + 1) * local),
    crops=crops,
    seed=seed,
  )
  # One element is one batch, so that each look-up of the order serves a whole
  # batch and the rows are written where they end up, without a copy. The end
  # is out of reach.
  steps = grain.MapDataset.range(start_step, 2**62)
  batches = steps.map(read).to_iter_dataset(
    read_options(config.num_threads, config.prefetch)
  )
  if config.num_workers:
    # Grain reads a flag, which raises where nobody called absl.app.run.
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()
    ahead = -(-config.prefetch // config.num_workers)
    batches = batches.mp_prefetch(
      grain.MultiprocessingOptions(
        num_workers=config.num_workers, per_worker_buffer_size=max(1, ahead)
      )
    )
  return iter(batches)


def eval_batches(
  source: Source,
  *,
  batch_size: int,
  resize: int,
  crop: int,
  num_threads: int,
  process_index: int = 0,
  process_count: int = 1,
  squash: bool = False,
  ten_crops: bool = False,
  interpolation: str = "bilinear",
  first_batch: int = 0,
) -> grain.DatasetIterator[Batch]:
  """Starts reading every example once, in order.

  Process p gets rows [p * b_local, (p + 1) * b_local) of each global batch.

  Args:
    source: the data set.
    batch_size: rows of every global batch, the last one too: it repeats its
      last image, with index n (no example), label -1 and an empty key.
    resize: length of the short side after resizing, in pixels.
    crop: side of the centre that is cut out, in pixels.
    num_threads: that decode; each works on a batch of its own.
    process_index: which of the processes this one is.
    process_count: how many share the global batch.
    squash: instead of cutting out the centre, make all of the resized image a
      square of `crop` pixels, whatever its shape.
    ten_crops: instead of one of the centre, cut ten squares out of an image.
    interpolation: one of `decode.INTERPOLATIONS`; of what is not squashed.
    first_batch: number of the batch to begin with.

  Returns:
    An iterator of {"image": uint8 [b_local, h, w, 3] ([b_local, 10, h, w, 3] of
    ten crops), "index": int32 [b_local],
    "label": int32 [b_local] (-1 where there is none), "key": list of strings,
    "bad": list of the `BadImage`s that were met}, with `close()` for stopping
    early. In place of an image that cannot be read stands the next one that
    can, under the name of the former and without a label.

  Raises:
    UserError: sizes that do not fit; from the iterator: a hundred images in a
      row that cannot be read.
  """
  if batch_size < 1:
    raise UserError(f"batch_size {batch_size} is not positive")
  local = local_size(batch_size, process_count)
  if crop > resize and not squash:
    raise UserError(
      f"the evaluation crop of {crop} pixels is larger than the resized image: "
      f"raise eval_resize from {resize} to {crop} or more"
    )
  num_batches = -(-len(source) // batch_size)
  rows = range(process_index * local, (process_index + 1) * local)
  if squash:
    pixels = decode.resize_squash
  else:
    cut = fixed_crops.ten_crops if ten_crops else decode.resize_center_crop
    pixels = functools.partial(cut, interpolation=interpolation)
  read = _ReadEvalBatch(
    source,
    batch_size,
    rows,
    functools.partial(pixels, resize=resize, crop=crop),
    (10, crop, crop, 3) if ten_crops else (crop, crop, 3),
  )
  batches = grain.MapDataset.range(first_batch, num_batches).map(read)
  return iter(batches.to_iter_dataset(read_options(num_threads, 2)))


def crops(config: Any) -> list[Crop]:
  """Returns what is cut out of every image for training.

  Args:
    config: section with `image_size`, `crop_scale`, `crop_ratio` (the whole
      image if left out), perhaps `crop_interpolation` (bilinear if left out)
      and, where there is more than one view, `views`; with small ones besides
      (multi-crop), `small_views`, `small_size` and `small_crop_scale`.

  Returns:
    The kinds of crops, large ones first.

  Source of the small ones: SwAV src/multicropdataset.py.
  """
  # Where only heads are trained a config need not say how images are cut: the
  # backbone sees them once, by their centres.
  scale = config.get("crop_scale", (1.0, 1.0))
  ratio = config.get("crop_ratio", (1.0, 1.0))
  how = config.get("crop_interpolation", "bilinear")
  kinds = [Crop(config.image_size, scale, ratio, config.get("views", 1), how)]
  if config.get("small_views", 0):
    kinds.append(
      Crop(
        config.small_size,
        config.small_crop_scale,
        ratio,
        config.small_views,
        how,
      )
    )
  return kinds


def num_batches_held(config: Any) -> int:
  """Returns how many training batches one process holds at most.

  Args:
    config: section with `num_threads`, `num_workers` and `prefetch`.
  """
  ahead = _batches_ahead(config.num_threads, config.prefetch)
  if not config.num_workers:
    return ahead
  # Each worker reads ahead as one process does, and hands over a buffer.
  return config.num_workers * ahead + max(config.num_workers, config.prefetch)


class _ReadTrainBatch:
  """Step -> this process's rows of the batch. A class: workers pickle it."""

  def __init__(
    self,
    source: Source,
    indices: Callable[..., np.ndarray],
    rows: range,
    crops: Sequence[Crop] | Sequence[FixedCrop],
    seed: int,
  ):
    self.source = source
    self.indices = indices
    self.rows = rows
    self.crops = crops
    self.seed = seed

  def __setstate__(self, state):
    self.__dict__ = state
    # In a worker process: Ctrl-C reaches all processes of a terminal, and the
    # first of them decides when the others end.
    with contextlib.suppress(ValueError):  # not in the main thread
      if multiprocessing.parent_process() is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

  def __call__(self, step: int) -> Batch:
    start = time.thread_time()
    index = self.indices(step=step)[self.rows.start : self.rows.stop]
    images = tuple(
      np.empty((len(index), crop.views, crop.size, crop.size, 3), np.uint8)
      for crop in self.crops
    )
    bad: list[BadImage] = []
    for i, (example, row) in enumerate(zip(index, self.rows, strict=True)):
      crop = functools.partial(self._crop, step=step, row=row)
      views, _ = read_one(self.source, int(example), crop, bad)
      for kind, pixels in zip(images, views, strict=True):
        kind[i] = pixels
    return {
      "image": images,
      "index": index,
      "bad": bad,
      "seconds": time.thread_time() - start,
    }

  def _crop(self, image, step: int, row: int):
    # By row, not by example: with replacement a batch may hold one twice.
    views = range(sum(crop.views for crop in self.crops))
    rngs = [
      order_lib.crop_generator(self.seed, step, row, view) for view in views
    ]
    if isinstance(first := self.crops[0], FixedCrop):
      return [fixed_crops.random_fixed_crops(image, first, rngs)]
    crops = cast(Sequence[Crop], self.crops)
    return decode.random_resized_crops(image, crops, rngs)


class _ReadEvalBatch:
  """Number of the batch -> the batch, padded at the end of the data set."""

  def __init__(
    self,
    source: Source,
    batch_size: int,
    rows: range,
    pixels: Callable[..., np.ndarray],
    shape: tuple[int, ...],
  ):
    self.source = source
    self.batch_size = batch_size
    self.rows = rows
    self.pixels = pixels
    self.shape = shape

  def __call__(self, number: int) -> Batch:
    size, n = len(self.rows), len(self.source)
    start = number * self.batch_size + self.rows.start
    images = np.empty((size, *self.shape), np.uint8)
    index = np.full(size, n, np.int32)
    label = np.full(size, -1, np.int32)
    key = [""] * size
    bad: list[BadImage] = []
    # None where the last batch ends before this process's rows.
    count = max(0, min(size, n - start))
    for row in range(count):
      met = len(bad)
      images[row], record = read_one(self.source, start + row, self.pixels, bad)
      index[row] = start + row
      if len(bad) > met:  # the record is a neighbour's
        key[row] = bad[met].key
        continue
      key[row] = record["key"]
      if record["label"] is not None:
        label[row] = record["label"]
    images[count:] = images[count - 1] if count else 0
    return {
      "image": images,
      "index": index,
      "label": label,
      "key": key,
      "bad": bad,
    }


def read_one(
  source: Source,
  index: int,
  crop: Callable[[Any], Pixels],
  bad: list[BadImage],
) -> tuple[Pixels, Record]:
  """Reads the first image from `index` on that can be read.

  Args:
    source: the data set.
    index: the image that is wanted.
    crop: encoded image -> pixels.
    bad: those that could not be read on the way are added.

  Returns:
    The pixels, and the record that they come from.
  """
  n = len(source)
  met, lost = len(bad), False
  for i in range(index, index + min(n, _MOST_IN_A_ROW)):
    key = source.keys[i % n] if source.keys else f"number {i % n}"
    try:
      record = source[i % n]
      key = record["key"]
      return crop(record["image"]), record
    except decode.DecodeError as error:
      reason = str(error)
    # A file that is gone, a disk that fails, a record that is no record:
    # every library has an exception of its own.
    except Exception as error:
      reason = " ".join(f"{type(error).__name__}: {error}".split())
      lost = lost or isinstance(error, OSError)
    bad.append(BadImage(i % n, key, reason))
  first, count = bad[met], len(bad) - met
  what = f"{count} images in a row" if count > 1 else "the only image there is"
  raise UserError(
    f"{what} cannot be read, from {first.key!r} ({first.reason}); "
    + ("is the disk still there?" if lost else "repair them or leave them out")
  )


def local_size(batch_size: int, process_count: int) -> int:
  """Returns the rows of a batch that each process reads."""
  if batch_size % process_count:
    raise UserError(
      f"batch_size {batch_size} is not divisible by {process_count} processes"
    )
  return batch_size // process_count


def read_options(num_threads: int, prefetch: int) -> grain.ReadOptions:
  """Returns how far to read ahead. Grain's default would be 500 batches."""
  return grain.ReadOptions(
    num_threads=num_threads,
    prefetch_buffer_size=_batches_ahead(num_threads, prefetch),
  )


def _batches_ahead(num_threads: int, prefetch: int) -> int:
  return max(num_threads, prefetch, 1)
