"""Which images a training step takes, and what its random crops are drawn from.

A pure function of the seed and the step number, so that neither threads nor
worker processes nor the number of hosts can change what the training sees.
"""

import functools

import numpy as np
from grain.experimental import index_shuffle
from jaxtyping import Int

from odc_jax.errors import UserError

# Numbers of the independent streams of random numbers under one seed.
_SAMPLE, _CROP = 0, 1

# Up to here a permutation takes no longer than a batch of look-ups in Grain's
# cipher, which gets slow (2 ms for one of 8 examples) and slightly uneven.
_SMALL = 2**16


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
  """Returns the number of whole batches; an epoch drops the remainder.

  Raises:
    UserError: there is not one.
  """
  if not 0 < batch_size <= num_examples:
    raise UserError(
      f"batch_size {batch_size} does not fit a data set of {num_examples}: "
      f"choose one from 1 to {num_examples}"
    )
  return num_examples // batch_size


def batch_indices(
  num_examples: int,
  batch_size: int,
  step: int,
  seed: int,
  sampling: str,
  order: Int[np.ndarray, " m"] | None = None,
) -> Int[np.ndarray, " b"]:
  """Returns the examples of one global batch.

  Neither time nor memory grows with the data set.

  Args:
    num_examples: size of the data set.
    batch_size: of the global batch.
    step: training step, from 0.
    seed: any whole number.
    sampling: "permutation": every epoch in a new random order, without the
      n mod b examples at its end, so that no batch spans two epochs and none
      holds an example twice. "replacement": each row uniform over the data
      set, as the official ODC draws them.
    order: the examples that one epoch is to run through, [m], taken as they
      stand; `sampling` then plays no part.

  Returns:
    int32 [b].

  Raises:
    UserError: the batch is larger than the data set, or `sampling` is unknown.

  Source: OpenSelfSup datasets/loader/sampler.py (sampling_replace).
  """
  if order is not None:
    epoch_steps = steps_per_epoch(len(order), batch_size)
    start = step % epoch_steps * batch_size
    return order[start : start + batch_size].astype(np.int32)
  epoch, offset = divmod(step, steps_per_epoch(num_examples, batch_size))
  if sampling == "permutation":
    if num_examples <= _SMALL:
      order = _permutation(num_examples, seed, epoch)
      return order[offset * batch_size :][:batch_size].astype(np.int32)
    # A 4-round Feistel cipher on the positions: nothing of length n exists.
    # It takes 32 bits of seed, which are to differ between (seed, epoch).
    mixed = np.random.SeedSequence([_uint64(seed), epoch]).generate_state(1)
    start = offset * batch_size
    return np.array(
      [
        index_shuffle(
          i, max_index=num_examples - 1, seed=int(mixed[0]), rounds=4
        )
        for i in range(start, start + batch_size)
      ],
      np.int32,
    )
  if sampling == "replacement":
    rng = _rng(seed, _SAMPLE, step)
    return rng.integers(num_examples, size=batch_size, dtype=np.int32)
  raise UserError(
    f"unknown sampling {sampling!r}: use 'permutation' or 'replacement'"
  )


@functools.lru_cache(maxsize=2)  # batches of two epochs may be under way
def _permutation(num_examples: int, seed: int, epoch: int):
  return _rng(seed, _SAMPLE, epoch).permutation(num_examples)


def crop_generator(
  seed: int, step: int, row: int, view: int
) -> np.random.Generator:
  """Returns what the box of one view is drawn from.

  Args:
    seed: of the crops.
    step: training step, from 0.
    row: the image's row in the global batch.
    view: counted through all kinds of crops.
  """
  return _rng(seed, _CROP, step, row, view)


def _rng(seed: int, stream: int, step: int, row: int = 0, view: int = 0):
  """Returns the generator that belongs to these numbers and no others.

  Philox is a function of a key and a counter, and counts in the first word.
  """
  key = np.array([_uint64(seed), stream], np.uint64)
  counter = np.array([0, view, row, step], np.uint64)
  return np.random.Generator(np.random.Philox(key=key, counter=counter))


def _uint64(seed: int) -> int:
  return seed % 2**64
