"""Fine-tuning with few labels: what the network is worth as a beginning.

Source: OpenSelfSup configs/benchmarks/semi_classification; swav
eval_semisup.py.
"""

import collections
import itertools
import pathlib
from collections.abc import Iterator

import jax
import numpy as np
from jaxtyping import Int

from odc_jax import mesh as mesh_lib
from odc_jax.data import augment
from odc_jax.distributed import compiler, processes
from odc_jax.errors import UserError
from odc_jax.evals import inputs, probe
from odc_jax.evals.inputs import Split, Subject
from odc_jax.logs import progress
from odc_jax.models.functional import functional
from odc_jax.models.heads import LinearHead
from odc_jax.models.network import build_classifier

# Per cent of the labels.
_PERCENTS = (1, 10)


def evaluate(subject: Subject) -> Iterator[tuple[str, float]]:
  """Yields `eval/semi_1pct_top1_best_of_<runs>` and `eval/semi_10pct_...`.

  All weights learn, the pretrained backbone's and those of a fresh linear layer
  on the pooled features, N(0, 0.01^2) at first; BatchNorm is in training mode.
  Random crops and flips; SGD, whose rate falls in steps. Each pair of a
  learning rate and a factor for the linear layer is a run, and the number is
  that of the best one on the test set after its last epoch: so does
  OpenSelfSup's table choose, and so the number of runs is in the name. Where
  `epoch` is "best" it is the best epoch of any run, as SwAV has it, and the
  name ends in `_best_epoch`. Top-5 is that of the same run and epoch, of more
  than ten classes.

  The images are the same fraction of every class, at least one of each, drawn
  by the seed; or those that a file names.

  Args:
    subject: Reads `config.model`, `config.seed` and the section
      `config.eval.semi`. In it, `percent1` and `percent10` have what is
      different with so many of the labels: `list` is "" or a text file with the
      key of an image a line (the part of it after the last slash will do, where
      only one has it). The batch is smaller where there are fewer images.

  Raises:
    UserError: If a list cannot be read, or names images that are not there, or
      a name that several have.
  """
  section = subject.config.eval.semi
  subject = inputs.at_size(subject, section)
  num_classes = probe.num_classes(subject)
  if not num_classes:
    return
  parts = (section.percent1, section.percent10)
  # Before anything is computed: a mistake shows at once.
  splits = [
    _listed(subject, percent, part.list)
    if part.list
    else _drawn(subject, percent)
    for percent, part in zip(_PERCENTS, parts, strict=True)
  ]
  learner, params, batch_stats = classifier(subject, num_classes)
  recipe = _recipe(section)
  train = probe.trainer(subject, learner, recipe)
  score = probe.scorer(subject, learner)
  grids = [
    list(itertools.product(part.learning_rates, part.head_multipliers))
    for part in parts
  ]
  with progress.bar(
    "epochs of fine-tuning with few labels",
    sum(map(len, grids)) * recipe.num_epochs,
    processes.is_first(),
  ) as advance:
    epochs = itertools.count(1)
    scores: list[probe.Score] = []

    def after_epoch(learned: probe.Learned) -> None:
      done = len(learned.losses)
      if section.epoch == "best" or done == recipe.num_epochs:
        scores.extend(score(learned.params, learned.batch_stats))
      advance(next(epochs))

    found = []
    for part, grid, split in zip(parts, grids, splits, strict=True):
      for rate, multiplier in grid:
        rates = {"backbone": rate, "head": rate * multiplier}
        train(params, batch_stats, rates, part.weight_decay, split, after_epoch)
      found.append(max(scores))
      scores.clear()
  for percent, grid, best in zip(_PERCENTS, grids, found, strict=True):
    what, protocol = f"semi_{percent}pct", f"best_of_{len(grid)}"
    if section.epoch == "best":
      protocol += "_best_epoch"
    yield from probe.named(best, what, protocol, num_classes)


def _recipe(section):
  """Returns how all of these trainings go."""
  return probe.Recipe(
    num_epochs=section.num_epochs,
    batch_size=section.batch_size,
    decay_epochs=section.decay_epochs,
    decay_rate=section.decay_rate,
    momentum=section.momentum,
    crop_scale=section.crop_scale,
    crop_ratio=section.crop_ratio,
    flip=section.flip,
  )


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


def _listed(subject: Subject, percent: int, path: str) -> Split:
  """Returns the images that a file names, for one share of the labels."""
  train, key = subject.train, f"eval.semi.percent{percent}.list"
  try:
    text = pathlib.Path(path).read_text("utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(
      f"{key}: {path} cannot be read ({error}); name a text file "
      'with an image a line, or ""'
    ) from error
  names = [line.strip() for line in text.splitlines() if line.strip()]
  keys = _keys(train)
  places = {keys[row]: place for place, row in enumerate(train.rows.tolist())}
  by_end = collections.defaultdict(list)
  for whole in places:
    by_end[whole.rpartition("/")[2]].append(whole)
  # A whole key is one image; the end of one may be that of several.
  meant = [[name] if name in places else by_end[name] for name in names]
  for name, found in zip(names, meant, strict=True):
    if len(found) > 1:
      raise UserError(
        f"{key}: {path} names {name!r}, which may be {found[0]!r} or "
        f"{found[1]!r}; write it with its folder"
      )
  unknown = [
    name for name, found in zip(names, meant, strict=True) if not found
  ]
  if unknown or not names:
    raise UserError(
      f"{key}: {path} names {len(names):,} images, of which "
      f"{len(unknown):,} are not among the labelled training images"
      + (f", such as {unknown[0]!r}" if unknown else "")
      + "; write the names as clusters.parquet has them"
    )
  return _at(train, np.unique([places[whole] for (whole,) in meant]))


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
