"""Linear SVMs on frozen features: Pascal VOC2007's classes, or any labels.

The protocols of Goyal et al. as OpenSelfSup runs them, number by number.

Features: every image is resized to `data.eval_resize` on its short side, then
to a square of `data.image_size` whatever its shape (256 and 224 for ResNet-50);
the last feature map is pooled (8,192 numbers for ResNet-50) and divided by its
length + 1e-5.

Classifiers: one `sklearn.svm.LinearSVC` for each class and each of 19 costs.
With several processes, each takes some of the classes.

What the official code makes of VOC's labels: 1 present, 0 difficult, -1 absent.
It renames them (create_voc_data_files.py: absent 0, difficult -1) before it
makes its 0 a -1 for training. So a difficult object counts as absent in the
training of `full`; it is in no sample of `low_shot`; and it is removed in
testing.

Source: Goyal et al., ICCV 2019, section 6.1 and 6.2; OpenSelfSup
benchmarks/svm_tools; fair_self_supervision_benchmark extra_scripts.
"""

import functools
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import cross_val_score, cross_validate
from sklearn.svm import LinearSVC
from sklearn.utils.parallel import Parallel, delayed

from odc_jax import mesh as mesh_lib
from odc_jax.data.source import Source
from odc_jax.data.subset import Subset
from odc_jax.distributed import processes
from odc_jax.errors import UserError
from odc_jax.evals.inputs import Subject
from odc_jax.evals.pooling import flat, pool
from odc_jax.evals.scores import voc_ap
from odc_jax.passes.extract import reading

# Runs what `delayed` has put off, and returns the results in order.
Run = Callable[[Iterable[Any]], Any]

# The official scripts' --costs_list, and what parse_cost_list adds to it.
COSTS = (1.0, 10.0, 100.0, *(0.5**n for n in range(4, 20)))

# Positive images per class, and independent draws of them.
SHOTS = (1, 2, 4, 8, 16, 32, 64, 96)
_NUM_SAMPLES = 5
# VOC2007's other classes: negatives for each positive of a class that is alone.
_NUM_OTHERS = 19

_NUM_FOLDS = 3


class Task(NamedTuple):
  """The training and test sets of all classes' classifiers.

  Attributes:
    features: Of the training images, with the length of `normalize`.
    targets: Of the training images: 1 present, 0 difficult, -1 absent.
    test_features: Of the test images.
    test_targets: Of the test images, as `targets`.
  """

  features: Float[np.ndarray, "n d"]
  targets: Int[np.ndarray, "n classes"]
  test_features: Float[np.ndarray, "m d"]
  test_targets: Int[np.ndarray, "m classes"]


def full(subject: Subject) -> Iterator[tuple[str, float]]:
  """Yields `eval/svm_map_cv3`: classifiers learnt from all training images.

  Args:
    subject: A source with `targets` (several labels an image) is taken whole;
      of another the labelled images, one class against the rest.
  """
  task = extract(subject, fewest=_NUM_FOLDS)
  if task is None:
    return
  aps = _by_class(
    subject,
    task.targets.shape[1],
    lambda c, run: full_ap(task, c, subject.config.seed, run),
  )
  yield "eval/svm_map_cv3", float(np.mean(aps))


def low_shot(subject: Subject) -> Iterator[tuple[str, float]]:
  """Yields `eval/low_shot_map_k{k}_best_c`: learnt from k images of a class.

  For every k the mean over five samples at the cost that is best on the test
  images: as published, and flattering. A k for which some class has too few
  images is left out; the official code fails there.

  Args:
    subject: As for `full`.
  """
  task = extract(subject, fewest=1)
  if task is None:
    return
  fewest = (task.targets == 1).sum(axis=0).min()
  shots = [k for k in SHOTS if k <= fewest]
  # [classes, shots, costs]
  aps = np.array(
    _by_class(
      subject,
      task.targets.shape[1],
      lambda c, run: low_shot_aps(
        task, c, shots, subject.config.seed, run
      ).tolist(),
    )
  )
  for k, by_cost in zip(shots, aps.mean(axis=0), strict=True):
    yield f"eval/low_shot_map_k{k}_best_c", float(by_cost.max())


def extract(subject: Subject, fewest: int) -> Task | None:
  """Returns the features and the targets of both parts.

  Args:
    subject: What is evaluated.
    fewest: A class is left out where fewer training images than this have it,
      or lack it, and where no test image has it; difficult ones do neither,
      and images that cannot be read do not count.

  Returns:
    The task, or None where no class is left.

  Raises:
    UserError: The training and the test set have different classes.
  """
  if getattr(subject.train.source, "targets", None) is None:
    classes = np.unique(subject.train.labels)
    parts = [
      (split.rows, np.where(split.labels[:, None] == classes, 1, -1))
      for split in (subject.train, subject.test)
    ]
  else:
    parts = _multi_label(subject)
  # Without any there is no need to read the images.
  if not _enough(parts[0][1], parts[1][1], fewest).any():
    return None
  arrays = []
  for split, (rows, targets) in zip(
    (subject.train, subject.test), parts, strict=True
  ):
    features, read = pooled(subject, Subset(split.source, rows))
    arrays += [normalize(features[read]), targets[read]]
  task = Task(*arrays)
  kept = _enough(task.targets, task.test_targets, fewest)
  if not kept.any():
    return None
  return task._replace(
    targets=task.targets[:, kept], test_targets=task.test_targets[:, kept]
  )


def _enough(targets, test_targets, fewest):
  """Returns which classes can be learnt and tested, bool [classes]."""
  return (
    ((targets == 1).sum(axis=0) >= fewest)
    & ((targets == -1).sum(axis=0) >= fewest)
    & (test_targets == 1).any(axis=0)
  )


def _multi_label(subject):
  """Returns the rows and the targets of both parts of a multi-label source."""
  train: Any = subject.train.source
  test: Any = subject.test.source
  if train is test:
    # As for other data sets without a test set of their own.
    halves = (np.arange(part, len(train), 2) for part in (0, 1))
    return [(rows, train.targets[rows]) for rows in halves]
  if train.classes != test.classes:
    raise UserError(
      f"the training set has the classes {', '.join(train.classes)}, the test "
      f"set {', '.join(test.classes)}: evaluate on two splits of one data set"
    )
  return [(np.arange(len(one)), one.targets) for one in (train, test)]


def pooled(
  subject: Subject, source: Source
) -> tuple[Float[np.ndarray, "n d"], Bool[np.ndarray, "n"]]:
  """Runs the network over a data set, every image squashed to a square.

  Args:
    subject: The network.
    source: The data set.

  Returns:
    What the last feature map is pooled to, float32; and which images could be
    read: the features of the others are zero.
  """
  mesh, n = subject.mesh, len(source)
  features, read = None, np.zeros(n, bool)
  with reading(source, subject.config, mesh, squash=True) as batches:
    for batch in batches:
      subject.check()
      # In the place of an image that cannot be read stands another one.
      bad = np.isin(batch["index"], [image.index for image in batch["bad"]])
      index = np.where(bad, n, batch["index"])
      found, index = map(
        processes.to_host,
        _last_map(
          subject.maps,
          subject.params,
          subject.batch_stats,
          *processes.to_devices((batch["image"], index), mesh),
        ),
      )
      if features is None:
        features = np.zeros((n, found.shape[1]), np.float32)
      real = index < n
      features[index[real]] = found[real]
      read[index[real]] = True
  assert features is not None
  return features, read


@functools.partial(jax.jit, static_argnames="maps")
def _last_map(maps, params, batch_stats, images, index):
  """Returns the pooled last map of one batch, and the index, on all devices."""
  pooled = flat(pool(maps(params, batch_stats, images))[-1])
  return mesh_lib.replicate((pooled, index))


def normalize(features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
  """Returns f / (|f| + 1e-5), row by row, in float64."""
  features = features.astype(np.float64)
  return features / (np.linalg.norm(features, axis=1, keepdims=True) + 1e-5)


def full_ap(task: Task, c: int, seed: int, run: Run) -> float:
  """Returns the test AP of class `c`, at the cost that cross-validation likes.

  Each cost is tried on three stratified folds, scored by scikit-learn's average
  precision, as the official code does; of equal ones the first is taken.

  Args:
    task: Features and targets.
    c: The class.
    seed: Of LinearSVC, which visits the images in random order.
    run: Where the fits run.
  """
  # Difficult ones (0) are negative here, and removed by voc_ap.
  targets = np.where(task.targets[:, c] == 1, 1, -1)
  svms = [_svm(cost, seed) for cost in COSTS]
  aps = run(
    delayed(cross_val_score)(
      svm, task.features, targets, cv=_NUM_FOLDS, scoring="average_precision"
    )
    for svm in svms
  )
  best = svms[np.argmax(np.mean(aps, axis=1))]
  best.fit(task.features, targets)
  scores = best.decision_function(task.test_features)
  return voc_ap(task.test_targets[:, c], scores)


def low_shot_aps(
  task: Task, c: int, shots: Sequence[int], seed: int, run: Run
) -> Float[np.ndarray, "shots costs"]:
  """Returns the test AP of class `c` for every k and cost, over the samples.

  Args:
    task: Features and targets.
    c: The class.
    shots: Every k; k images of the class and k times as many without it as
      there are other classes, or all of these, are drawn. To a class that is
      alone come 19 k, as if it were one of VOC2007's.
    seed: Of the draws, which depend on the class and k as well, and of
      LinearSVC.
    run: Where the fits run.
  """
  targets = task.targets[:, c]
  num_others = task.targets.shape[1] - 1 or _NUM_OTHERS
  positive, negative = (np.flatnonzero(targets == t) for t in (1, -1))
  aps = []
  for k in shots:
    samples = []
    for sample in range(_NUM_SAMPLES):
      rng = np.random.default_rng([seed % 2**64, c, k, sample])
      num_negative = min(k * num_others, len(negative))
      drawn = (
        rng.choice(positive, k, replace=False),
        rng.choice(negative, num_negative, replace=False),
      )
      samples.append(np.sort(np.concatenate(drawn)))
    # The samples are given as folds, so that all workers map one copy of the
    # features; the scores of these folds are of no use.
    folds = [(rows, rows[:1]) for rows in samples]
    fitted = run(
      delayed(cross_validate)(
        _svm(cost, seed),
        task.features,
        targets,
        cv=folds,
        return_estimator=True,
      )
      for cost in COSTS
    )
    aps.append(
      [
        np.mean(
          [
            voc_ap(
              task.test_targets[:, c],
              svm.decision_function(task.test_features),
            )
            for svm in one["estimator"]
          ]
        )
        for one in fitted
      ]
    )
  return np.array(aps)


def _svm(cost, seed):
  return LinearSVC(
    C=cost,
    penalty="l2",
    loss="squared_hinge",
    dual=True,  # pyright: ignore[reportArgumentType]: its stubs say str
    class_weight={1: 2, -1: 1},
    tol=1e-4,
    max_iter=2000,
    random_state=seed % 2**32,
  )


def _by_class(
  subject: Subject, num_classes: int, ap: Callable[[int, Run], Any]
) -> list[Any]:
  """Returns `ap` of every class; each process computes some of them.

  Args:
    subject: Its `check` is called.
    num_classes: How many.
    ap: (class, where to run fits) -> something that JSON can hold.
  """
  mine = []
  with warnings.catch_warnings(), _workers() as run:
    # Large costs need more than the 2,000 iterations; so it was published.
    warnings.simplefilter("ignore", ConvergenceWarning)
    for start in range(0, num_classes, jax.process_count()):
      subject.check()
      c = start + jax.process_index()
      if c < num_classes:
        mine.append((c, ap(c, run)))
  found = dict(pair for part in processes.gather(mine) for pair in part)
  return [found[c] for c in range(num_classes)]


def _workers() -> Parallel:
  """Returns one process for each core of this host.

  Not threads: those would share LIBLINEAR's random numbers, and no result could
  be repeated. Ctrl-C is for the first process, which decides what becomes of
  it.
  """
  return Parallel(
    n_jobs=-1,
    backend="loky",
    initializer=signal.signal,
    initargs=(signal.SIGINT, signal.SIG_IGN),
  )
