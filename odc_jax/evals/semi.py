"""Fine-tuning with few labels: what the network is worth as a beginning.

Source: OpenSelfSup configs/benchmarks/semi_classification.
"""

import collections
import itertools
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from odc_jax import mesh as mesh_lib
from odc_jax.data import augment
from odc_jax.distributed import compiler, processes
from odc_jax.errors import UserError
from odc_jax.evals import probe
from odc_jax.evals.inputs import Split, Subject
from odc_jax.logs import progress
from odc_jax.models.functional import functional
from odc_jax.models.heads import LinearHead
from odc_jax.models.network import build_classifier


class _Part(NamedTuple):
  """How much of the labels to use, and how to."""

  percent: int
  weight_decay: float


_PARTS = (_Part(1, 5e-4), _Part(10, 1e-4))


def evaluate(subject: Subject) -> Iterator[tuple[str, float]]:
  """Yields `eval/semi_1pct_top1_best_of_<runs>` and `eval/semi_10pct_...`.

  All weights learn, the pretrained backbone's and those of a fresh linear layer
  on the pooled features, N(0, 0.01^2) at first; BatchNorm is in training mode.
  Random crops and flips; SGD with momentum 0.9, weight decay 5e-4 with 1 % of
  the labels and 1e-4 with 10 %; the rate falls to a fifth after 60 and after
  80 % of the epochs. Each pair of a learning rate and a factor for the linear
  layer is a run, and the number is that of the best one on the test set after
  its last epoch: so does the official table choose, and so the number of runs
  is in the name. Top-5 is that of the same run, of more than ten classes.

  The images are the same fraction of every class, at least one of each, drawn
  by the seed; or those that a file names.

  Args:
    subject: Reads `config.model`, `config.augment`, `config.seed`, and of
      `config.eval`: `semi_epochs` (officially 20), `semi_learning_rates`
      (0.001, 0.01, 0.1), `semi_head_multipliers` (1, 10, 100),
      `probe_batch_size` (256; fewer where there are fewer images) and
      `semi_lists`: for 1 and for 10 %, a text file with the key of an image a
      line (the part of it after the last slash will do, where only one has
      it), or "".

  Raises:
    UserError: If a list cannot be read, or names images that are not there, or
      a name that several have.
  """
  config = subject.config.eval
  num_classes = probe.num_classes(subject)
  if not num_classes:
    return
  # Before anything is computed: a mistake shows at once.
  splits = [
    _listed(subject, path) if path else _drawn(subject, part.percent)
    for part, path in zip(_PARTS, config.semi_lists, strict=True)
  ]
  learner, params, batch_stats = classifier(subject, num_classes)
  recipe = probe.Recipe(
    num_epochs=config.semi_epochs,
    batch_size=config.probe_batch_size,
    decay_at=(0.6, 0.8),
    decay_rate=0.2,
  )
  train = probe.trainer(subject, learner, recipe)
  score = probe.scorer(subject, learner)
  grid = list(
    itertools.product(config.semi_learning_rates, config.semi_head_multipliers)
  )
  with progress.bar(
    "epochs of fine-tuning with few labels",
    len(_PARTS) * len(grid) * config.semi_epochs,
    processes.is_first(),
  ) as advance:
    epochs = itertools.count(1)
    found = []
    for part, split in zip(_PARTS, splits, strict=True):
      scores = []
      for rate, multiplier in grid:
        learned = train(
          params,
          batch_stats,
          {"backbone": rate, "head": rate * multiplier},
          part.weight_decay,
          split,
          lambda learned: advance(next(epochs)),
        )
        scores += score(learned.params, learned.batch_stats)
      found.append(max(scores))
  for part, best in zip(_PARTS, found, strict=True):
    what, protocol = f"semi_{part.percent}pct", f"best_of_{len(grid)}"
    yield from probe.named(best, what, protocol, num_classes)


def classifier(subject, num_classes):
  """Returns the network with a new head as learner, and its weights."""
  config = subject.config
  classifier = functional(
    lambda rngs: build_classifier(
      config.model,
      num_classes,
      rngs,
      in_channels=2 if config.augment.sobel else 3,
    )
  )

  def apply(params, batch_stats, frozen, images, train):
    del frozen
    images = augment.normalize(config.augment, images)
    logits, batch_stats = classifier.apply(
      params, batch_stats, images, None, train
    )
    return [logits], batch_stats

  num_features = subject.train.features.features.shape[1]
  head = functional(
    lambda rngs: LinearHead(num_features, num_classes, rngs=rngs)
  )
  init = jax.jit(
    head.init,
    out_shardings=mesh_lib.replicated(subject.mesh),
    compiler_options=compiler.options_for_once(subject.mesh),
  )
  head_params, _ = init(jax.random.key(config.seed))
  params = {"backbone": subject.params["backbone"], "head": head_params}
  batch_stats = {"backbone": subject.batch_stats["backbone"]}
  return probe.Learner(apply, ()), params, batch_stats


def _drawn(subject: Subject, percent: int) -> Split:
  """Returns the same fraction of every class, and at least one image."""
  train = subject.train
  rng = np.random.default_rng([subject.config.seed, percent])
  chosen = []
  for label in np.unique(train.labels):
    members = np.flatnonzero(train.labels == label)
    count = max(1, round(len(members) * percent / 100))
    chosen.append(rng.permutation(members)[:count])
  return _at(train, np.sort(np.concatenate(chosen)))


def _listed(subject: Subject, path: str) -> Split:
  """Returns the images that a file names."""
  train = subject.train
  try:
    text = pathlib.Path(path).read_text()
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(
      f"eval.semi_lists: {path} cannot be read ({error}); name a text file "
      'with an image a line, or ""'
    ) from error
  names = [line.strip() for line in text.splitlines() if line.strip()]
  keys = _keys(train)
  places = {keys[row]: place for place, row in enumerate(train.rows.tolist())}
  by_end = collections.defaultdict(list)
  for key in places:
    by_end[key.rpartition("/")[2]].append(key)
  # A whole key is one image; the end of one may be that of several.
  meant = [[name] if name in places else by_end[name] for name in names]
  for name, found in zip(names, meant, strict=True):
    if len(found) > 1:
      raise UserError(
        f"eval.semi_lists: {path} names {name!r}, which may be {found[0]!r} or "
        f"{found[1]!r}; write it with its folder"
      )
  unknown = [
    name for name, found in zip(names, meant, strict=True) if not found
  ]
  if unknown or not names:
    raise UserError(
      f"eval.semi_lists: {path} names {len(names):,} images, of which "
      f"{len(unknown):,} are not among the labelled training images"
      + (f", such as {unknown[0]!r}" if unknown else "")
      + "; write the names as clusters.parquet has them"
    )
  return _at(train, np.unique([places[key] for (key,) in meant]))


def _at(split: Split, places: Int[np.ndarray, "s"]) -> Split:
  return split._replace(rows=split.rows[places], labels=split.labels[places])


def _keys(split: Split) -> dict[int, str]:
  """Returns the names of a data set's images, whoever has read them."""
  if split.source.keys is not None:
    return dict(enumerate(split.source.keys))
  keys = {}
  for part in processes.gather(list(split.features.keys.items())):
    keys.update(part)
  return keys
