"""Tells whether the devices wait for images, or images for the devices."""

import contextlib
import os
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax

from odc_jax.config import Config, check
from odc_jax.logs import progress

# Steps handed to the devices and not yet computed. Two keep them busy; more
# would only fill their memory with batches.
IN_FLIGHT = 2

# Where the devices wait longer than this share of the time, images are short.
DATA_BOUND = 0.05


class Stopwatch:
  """Measures for how long the devices have nothing to do for lack of a batch.

  The host hands over steps ahead of the devices, so that its own waiting says
  little. A thread notes when each step is computed; what counts is the time
  that the host waits for a batch after the last of them.
  """

  def __init__(self):
    """Starts the thread."""
    self._steps: queue.SimpleQueue[Any] = queue.SimpleQueue()
    self._room = threading.Semaphore(IN_FLIGHT)
    self._handed_over = self._computed = 0
    self._last_computed = time.perf_counter()
    self.idle_seconds = 0.0
    self._thread = threading.Thread(target=self._watch, daemon=True)
    self._thread.start()

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Encloses the loop's waiting for a batch."""
    start = time.perf_counter()
    yield
    end = time.perf_counter()
    if self._computed == self._handed_over:
      self.idle_seconds += max(0.0, end - max(start, self._last_computed))

  def handed_over(self, result: Any) -> None:
    """Notes that a step was given to the devices.

    Args:
      result: One of its arrays, of those that are not donated. Returns when
        no more than `IN_FLIGHT` steps are still to be computed.
    """
    self._handed_over += 1
    self._steps.put(result)
    self._room.acquire()

  def close(self) -> None:
    """Ends the thread."""
    self._steps.put(None)
    self._thread.join()

  def _watch(self):
    while (result := self._steps.get()) is not None:
      # A step that failed raises where the loop fetches its scalars.
      with contextlib.suppress(Exception):
        result.block_until_ready()
      self._last_computed = time.perf_counter()
      self._computed += 1
      self._room.release()


def time_left(seconds: float) -> str:
  """Returns how long training will take, in words.

  Args:
    seconds: From now to the last step, evaluations not counted.
  """
  about = progress.duration(seconds)
  text = f"training takes about {about} from here on this machine"
  if seconds > 3600 and jax.default_backend() == "cpu":
    text += "; the config's :quick variant shows in minutes that all is well"
  return text


def verdict(
  config: Config,
  images_per_second: float,
  data_wait: float,
  seconds_per_image: float,
) -> str:
  """Returns a line that says what held the run up, and what to change.

  Args:
    config: Reads of `data` `resident`, `num_threads` and `num_workers`, and
      `model.train`.
    images_per_second: That the run trained on, all processes together.
    data_wait: Share of the time in which the devices waited for a batch.
    seconds_per_image: CPU time of reading, decoding and cropping an image, or
      of drawing what is cropped on the devices.
  """
  cores = len(os.sched_getaffinity(0)) if _has_affinity() else os.cpu_count()
  cores = cores or 1
  used = images_per_second / jax.process_count() * seconds_per_image
  frozen = check.is_frozen(config)  # its features lie there
  on_devices = frozen or config.data.resident == "images"
  work = (
    "choosing" if frozen else "drawing crops of" if on_devices else "reading"
  )
  reading = (
    f"{work} an image takes {1000 * seconds_per_image:.3g} ms of a core, "
    f"{used:.1f} of {cores} cores in all"
  )
  if data_wait < DATA_BOUND:
    helps = "A faster device"
    if not frozen:
      helps += ", a smaller model or data.image_size, or model.dtype=bfloat16"
    return (
      f"compute-bound: {images_per_second:.0f} images/s, the devices waited "
      f"for images {data_wait:.1%} of the time; {reading}. {helps} would help"
      + ("" if on_devices else "; more data.num_threads would not")
    )
  threads, workers = config.data.num_threads, config.data.num_workers
  if on_devices:
    remedy = "a larger batch_size would help"
  elif used > 0.8 * cores:
    remedy = "the cores are at their limit: store the images smaller, or take "
    remedy += "a host with more cores"
  elif threads * max(1, workers) < cores:
    remedy = f"raise data.num_threads from {threads} to {cores}"
  elif not workers:
    remedy = "set data.num_workers to 4 or more, or put the images on a faster "
    remedy += "disk"
  else:
    remedy = f"raise data.num_workers from {workers}, or put the images on a "
    remedy += "faster disk"
  if not on_devices:
    remedy += ", or keep them on the devices with data.resident=images"
  return (
    f"data-bound: {images_per_second:.0f} images/s, the devices waited for "
    f"images {data_wait:.1%} of the time and could be "
    f"{1 / max(0.01, 1 - data_wait):.1f} times as fast; {reading}: {remedy}"
  )


def _has_affinity() -> bool:
  return hasattr(os, "sched_getaffinity")  # not on macOS
