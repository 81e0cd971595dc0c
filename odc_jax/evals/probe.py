"""Classifiers that learn from labelled images by SGD, and their accuracy.

The batches are those of training, random crops and all, with labels looked up
by index. The device flips and jitters; what learns and what stays as it is,
the caller says.
"""

import contextlib
import functools
import math
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from odc_jax import mesh as mesh_lib
from odc_jax.config import Config
from odc_jax.data import augment, loader
from odc_jax.data.decode import Crop
from odc_jax.data.fixed_crops import FixedCrop
from odc_jax.data.subset import Subset
from odc_jax.distributed import compiler, processes
from odc_jax.evals.inputs import Split, Subject
from odc_jax.losses import cross_entropy
from odc_jax.passes import extract

# Top-5 says nothing where a guess is right half the time.
_TOP5_CLASSES = 10


class Learner(NamedTuple):
  """Classifiers that learn together, one or more of them on the same images.

  Attributes:
    apply: (params, batch_stats, frozen, images, train) -> (list of logits
      [b, k], batch_stats), to be jitted. The images are [b, h, w, 3], 0 to 255,
      float32; `train` is a Python bool.
    frozen: What else `apply` needs, and nothing changes.
  """

  apply: Callable[..., tuple[list[Array], Any]]
  frozen: Any


class Recipe(NamedTuple):
  """How they learn: SGD on random crops, some of them mirrored.

  Attributes:
    num_epochs: How often they see the images.
    batch_size: At most; see `batch_size`.
    schedule: Of the rate r, by the epoch e from 0: "step" multiplies it by
      `decay_rate` at each of `decay_epochs`; "cosine" makes it
      r (1 + cos(pi e / num_epochs)) / 2; "inverse_sqrt" makes it, in step t
      from 0, r / sqrt(1 + r weight_decay t), as deepcluster util.py has it.
    decay_epochs: When the rate falls.
    decay_rate: To which fraction of it.
    momentum: Of the updates.
    nesterov: Which kind of momentum.
    train_crops: "resized": parts of the image, of `crop_scale` of its area and
      `crop_ratio` of width and height; "fixed": squares of
      `data.image_size` out of the middle of the image at `data.eval_resize`.
    crop_scale: See there.
    crop_ratio: See there.
    flip: Share of the images that are mirrored.
    jitter: Greatest change of brightness, contrast and saturation.
    lighting: Standard deviation of the lighting.
  """

  num_epochs: int
  batch_size: int
  schedule: str = "step"
  decay_epochs: tuple[float, ...] = ()
  decay_rate: float = 0.1
  momentum: float = 0.9
  nesterov: bool = False
  train_crops: str = "resized"
  crop_scale: tuple[float, float] = (0.08, 1.0)
  crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
  flip: float = 0.5
  jitter: float = 0.0
  lighting: float = 0.0


def recipe(section: Config) -> Recipe:
  """Returns what a section of `eval` for linear classifiers says.

  Args:
    section: `eval.linear_sgd` or `eval.linear_stages`.
  """
  return Recipe(
    num_epochs=section.num_epochs,
    batch_size=section.batch_size,
    schedule=section.schedule,
    decay_epochs=section.decay_epochs,
    decay_rate=section.decay_rate,
    momentum=section.momentum,
    nesterov=section.nesterov,
    train_crops=section.train_crops,
    crop_scale=section.crop_scale,
    crop_ratio=section.crop_ratio,
    flip=section.flip,
    jitter=section.jitter,
    lighting=section.lighting,
  )


def protocol(section: Config) -> str:
  """Returns what of a section for linear classifiers is in a number's name."""
  schedule = "" if section.schedule == "step" else f"_{section.schedule}"
  views = "" if section.test_views == "center" else "_tencrop"
  return f"sgd{section.num_epochs}{schedule}{views}"


class Learned(NamedTuple):
  """The state of the classifiers in training.

  Attributes:
    params: Parameters of the classifiers.
    batch_stats: Running statistics of the classifiers' BatchNorm.
    losses: The mean of each epoch's steps.
  """

  params: Any
  batch_stats: Any
  losses: list[float]


class Score(NamedTuple):
  """The fraction of images whose label is among the highest logits."""

  top1: float
  top5: float


def num_classes(subject: Subject) -> int:
  """Returns how many classes the labels of both splits tell apart; 0 for none.

  None as well where either has no label at all: there is nothing to learn from,
  or nothing to be tested on.
  """
  labels = (subject.train.labels, subject.test.labels)
  if not all(map(len, labels)):
    return 0
  return int(max(part.max() for part in labels)) + 1


def named(
  score: Score, what: str, protocol: str, num_classes: int
) -> Iterator[tuple[str, float]]:
  """Yields `eval/<what>_top1_<protocol>`, and top-5 of more than ten classes.

  Args:
    score: The accuracy.
    what: What was tried.
    protocol: How.
    num_classes: How many there are.
  """
  yield f"eval/{what}_top1_{protocol}", score.top1
  if num_classes > _TOP5_CLASSES:
    yield f"eval/{what}_top5_{protocol}", score.top5


def best(scores: Sequence[Score]) -> Score:
  """Returns the best top-1 and the best top-5, perhaps of different epochs."""
  return Score(*(max(column) for column in zip(*scores, strict=True)))


def batch_size(wanted: int, num_images: int, num_devices: int) -> int:
  """Returns the most images that a batch can hold.

  Args:
    wanted: The largest batch size.
    num_images: In the data set; limits the batch size too.
    num_devices: The smaller of both is rounded down to a multiple of it, but
      not below it, nor below 2, which BatchNorm needs.
  """
  most = min(wanted, num_images) // num_devices * num_devices
  return max(most, num_devices, 2)


def trainer(subject: Subject, learner: Learner, recipe: Recipe) -> Callable:
  """Returns `train(params, batch_stats, rates, weight_decay, split, ...)`.

  It is compiled once for all its calls. These go through the images in the
  same order, in the same crops, whatever the rates; an epoch drops the images
  that do not fill a batch, others each time. An image that cannot be read any
  more teaches nothing. Its arguments and result:

    params: The classifiers' initial parameters, a dict.
    batch_stats: Their initial running statistics.
    rates: The learning rate of every part: of each key of `params`.
    weight_decay: Of every parameter.
    split: The images, and their labels; one or more.
    after_epoch: Is given a `Learned` whenever an epoch is over.

  It returns the last `Learned`, and raises `StoppedError` where a signal asks
  to end meanwhile.

  Args:
    subject: Reads `config.seed` and `config.data`; calls `check` once a batch.
    learner: Who learns.
    recipe: How.
  """
  config, mesh = subject.config, subject.mesh
  momentum = optax.trace(decay=recipe.momentum, nesterov=recipe.nesterov)
  step = _step(config, mesh, learner, momentum, recipe)
  start = jax.jit(momentum.init, out_shardings=mesh_lib.replicated(mesh))

  def train(
    params: Any,
    batch_stats: Any,
    rates: Mapping[str, float],
    weight_decay: float,
    split: Split,
    after_epoch: Callable[[Learned], None] = lambda learned: None,
  ) -> Learned:
    rows, labels = split.rows, split.labels
    size = batch_size(recipe.batch_size, len(rows), mesh.size)
    # Fewer images than devices: they are repeated.
    count = max(len(rows), size)
    rows, labels = np.resize(rows, count), np.resize(labels, count)
    steps = count // size
    state = params, batch_stats, start(params)
    decay = np.float32(weight_decay)
    losses: list[float] = []
    batches = _train_batches(config, recipe, Subset(split.source, rows), size)
    with contextlib.closing(batches):
      for epoch in range(recipe.num_epochs):
        epoch_losses = []
        for number in range(epoch * steps, (epoch + 1) * steps):
          subject.check()
          now = _rates(recipe, rates, weight_decay, epoch, number)
          batch = next(batches)
          arrays = processes.to_devices(
            (batch["image"], batch["index"], _labels(batch, labels)), mesh
          )
          state, loss = step(
            state, learner.frozen, *arrays, np.int32(number), now, decay
          )
          epoch_losses.append(loss)
        losses.append(float(np.mean(jax.device_get(epoch_losses))))
        after_epoch(Learned(state[0], state[1], list(losses)))
    return Learned(state[0], state[1], losses)

  return train


def _step(config, mesh, learner, momentum, recipe):
  """Returns the step of `trainer`, jitted.

  (state, frozen, images, index, labels, number, rates, decay) -> (state, loss),
  where the state is (params, batch_stats, velocity) and `number` counts steps.
  """
  augmentation = _augmentation(recipe)

  @functools.partial(
    jax.jit,
    out_shardings=mesh_lib.replicated(mesh),
    compiler_options=compiler.compiler_options(mesh),
  )
  def step(state, frozen, images, index, labels, number, rates, decay):
    params, batch_stats, velocity = state
    key = jax.random.fold_in(jax.random.key(config.seed), number)
    (views,) = augment.augment_views(augmentation, key, images, index)
    images = views[:, 0]

    def loss_function(params):
      logits, new_stats = learner.apply(
        params, batch_stats, frozen, 255 * images, True
      )
      return sum(_mean_loss(x, labels) for x in logits), new_stats

    (loss, batch_stats), gradients = jax.value_and_grad(
      loss_function, has_aux=True
    )(params)
    decayed = jax.tree.map(lambda g, p: g + decay * p, gradients, params)
    updates, velocity = momentum.update(decayed, velocity)
    # Each part learns at its own rate.
    params = jax.tree.map(
      lambda rate, part, update: optax.tree.add_scale(part, -rate, update),
      rates,
      params,
      updates,
    )
    return (params, batch_stats, velocity), loss

  return step


def scorer(
  subject: Subject, learner: Learner, test_views: str = "center"
) -> Callable:
  """Returns `score(params, batch_stats)` -> a `Score` for every classifier.

  On crops of all images of the test set that have a label and can be read. It
  is compiled once for all its calls, and raises `StoppedError` as `train` does.

  Args:
    subject: Reads `config.data`, `config.eval.batch_size`; calls `check` once a
      batch.
    learner: Who has learned.
    test_views: "center", or of ten crops (`fixed_crops.ten_crops`) the mean of
      the logits, "ten_logits", or of the probabilities, "ten_softmax".
  """
  config, mesh = subject.config, subject.mesh
  source = Subset(subject.test.source, subject.test.rows)
  ten_crops = test_views != "center"

  @functools.partial(
    jax.jit,
    out_shardings=mesh_lib.replicated(mesh),
    compiler_options=compiler.compiler_options(mesh),
  )
  def count(params, batch_stats, frozen, images, labels):
    # Ten crops are as many images.
    images = images.astype(jnp.float32).reshape(-1, *images.shape[-3:])
    logits, _ = learner.apply(params, batch_stats, frozen, images, False)
    if test_views == "ten_softmax":
      logits = [jax.nn.softmax(x) for x in logits]
    if ten_crops:
      logits = [x.reshape(-1, 10, x.shape[1]).mean(1) for x in logits]
    found = jnp.stack([hits(x, labels) for x in logits])
    return found, jnp.sum(labels >= 0)

  def score(params: Any, batch_stats: Any) -> list[Score]:
    counts = []
    with extract.reading(source, config, mesh, ten_crops=ten_crops) as batches:
      for batch in batches:
        subject.check()
        arrays = processes.to_devices((batch["image"], batch["label"]), mesh)
        counts.append(count(params, batch_stats, learner.frozen, *arrays))
    counts = jax.device_get(counts)
    found = np.sum([part for part, _ in counts], axis=0)
    known = max(1, int(np.sum([part for _, part in counts])))
    return [Score(*row.tolist()) for row in found / known]

  return score


def hits(logits: Float[Array, "b k"], labels: Int[Array, "b"]) -> Array:
  """Returns how often the label has the highest logit, and one of the five.

  Of equal logits the label's comes last, and a NaN is higher than any: what
  has diverged is right about nothing.

  Args:
    logits: [b, k].
    labels: [b]; -1 for what does not count.

  Returns:
    int32 [2].
  """
  own = jnp.take_along_axis(logits, jnp.maximum(labels, 0)[:, None], axis=1)
  rank = jnp.sum(~(logits < own), axis=1) - 1
  known = labels >= 0
  return jnp.stack([jnp.sum(known & (rank < most)) for most in (1, 5)])


def _mean_loss(logits, labels):
  """Returns the cross-entropy of those that have a label; 0 without any."""
  known = labels >= 0
  losses = cross_entropy(logits, jnp.maximum(labels, 0))
  total = jnp.sum(jnp.where(known, losses, 0))
  return total / jnp.maximum(1, jnp.sum(known))


def _rates(recipe, rates, weight_decay, epoch, step):
  """Returns the learning rate of every part in a step of an epoch."""
  factor = 1.0
  if recipe.schedule == "step":
    falls = sum(epoch >= at for at in recipe.decay_epochs)
    factor = recipe.decay_rate**falls
  elif recipe.schedule == "cosine":
    factor = (1 + math.cos(math.pi * epoch / recipe.num_epochs)) / 2
  now = {part: factor * rate for part, rate in rates.items()}
  if recipe.schedule == "inverse_sqrt":
    now = {
      part: rate / math.sqrt(1 + rate * weight_decay * step)
      for part, rate in rates.items()
    }
  return {part: np.float32(rate) for part, rate in now.items()}


def _labels(batch, labels):
  """Returns the labels of a batch; -1 for what stands in for another image."""
  bad = [image.index for image in batch["bad"]]
  found = labels[batch["index"]]
  return np.where(np.isin(batch["index"], bad), -1, found).astype(np.int32)


def _train_batches(config: Config, recipe: Recipe, source, size):
  data = config.data
  crops = [Crop(data.image_size, recipe.crop_scale, recipe.crop_ratio)]
  if recipe.train_crops == "fixed":
    crops = [FixedCrop(data.image_size, data.eval_resize)]
  return loader.train_batches(
    source,
    types.SimpleNamespace(
      # Whatever the training does: each image once an epoch.
      sampling="permutation",
      num_threads=data.num_threads,
      num_workers=data.num_workers,
      prefetch=data.prefetch,
    ),
    batch_size=size,
    crops=crops,
    seed=config.seed,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )


def _augmentation(recipe: Recipe):
  """Returns what the device does to a crop; it stays between 0 and 1."""
  return types.SimpleNamespace(
    flip=recipe.flip,
    rotation=0.0,
    translate=0,
    jitter_p=1.0,
    brightness=recipe.jitter,
    contrast=recipe.jitter,
    saturation=recipe.jitter,
    hue=0.0,
    gray=0.0,
    blur=0.0,
    solarize=0.0,
    lighting=recipe.lighting,
    # The network normalises, as it does an image that nobody has jittered.
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    sobel=False,
  )
