"""The SVM protocols against a loop that follows the official scripts."""

import collections

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import LinearSVC
from sklearn.utils.parallel import Parallel

from odc_jax.data import sources
from odc_jax.data.subset import Subset
from odc_jax.errors import UserError
from odc_jax.evals import svm
from odc_jax.evals.inputs import Subject, splits
from odc_jax.evals.scores import voc_ap
from odc_jax.passes.extract import Features
from tests.data import pascal

SEED = 3


def classifier(cost, seed=SEED):
  """As the official scripts call it; the seed is ours."""
  return LinearSVC(
    C=cost,
    class_weight={1: 2, -1: 1},
    intercept_scaling=1.0,
    verbose=0,
    penalty="l2",
    loss="squared_hinge",
    tol=0.0001,
    dual=True,
    max_iter=2000,
    random_state=seed,
  )


def official_ap(x, targets, test_x, test_targets, costs):
  """train_svm_kfold.py and test_svm.py for one class, in VOC's numbers."""
  y = np.where(targets == 1, 1, -1)
  means = []
  for cost in costs:
    aps = []
    for rows, held_out in StratifiedKFold(3).split(x, y):
      model = classifier(cost).fit(x[rows], y[rows])
      aps.append(
        average_precision_score(
          y[held_out] == 1, model.decision_function(x[held_out])
        )
      )
    means.append(np.mean(aps))
  model = classifier(costs[int(np.argmax(means))]).fit(x, y)
  return voc_ap(test_targets, model.decision_function(test_x))


def task_of(seed=0, n=90, m=60, d=20, classes=3):
  """Classes that overlap; difficult ones lie between."""
  rng = np.random.default_rng(seed)
  directions = rng.normal(size=(classes, d))
  parts = []
  for size in (n, m):
    targets = rng.choice([1, 0, -1], (size, classes), p=[0.3, 0.2, 0.5])
    x = rng.normal(size=(size, d)) + 0.3 * targets @ directions
    parts += [svm.normalize(x), targets]
  return svm.Task(*parts)


@pytest.fixture
def two_costs(monkeypatch):
  monkeypatch.setattr(svm, "COSTS", (1.0, 0.5**6))
  return svm.COSTS


def run(tasks):
  return Parallel(n_jobs=1)(tasks)


def test_the_published_costs_and_shots():
  assert len(svm.COSTS) == 19
  assert svm.COSTS[:4] == (1.0, 10.0, 100.0, 0.0625)
  assert svm.COSTS[-1] == 2.0**-19
  assert svm.SHOTS == (1, 2, 4, 8, 16, 32, 64, 96)


def test_features_are_divided_by_their_length_and_a_little():
  x = np.array([[3, 4], [0, 0], [3e-5, 4e-5]], np.float32)
  expected = [[3 / 5.00001, 4 / 5.00001], [0, 0], [0.5, 4 / 6]]
  found = svm.normalize(x)
  assert found.dtype == np.float64
  np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("c", range(3))
def test_one_class_as_the_official_scripts_do_it(c, monkeypatch):
  costs = (1.0, 0.5**4, 0.5**12)
  monkeypatch.setattr(svm, "COSTS", costs)
  task = task_of()
  args = [x if x.dtype == float else x[:, c] for x in task]
  assert svm.full_ap(task, c, SEED, run) == official_ap(*args, costs)


def test_difficult_ones_are_negative_in_training_and_not_in_the_test(two_costs):
  task = task_of()
  found = svm.full_ap(task, 0, SEED, run)

  def replaced(which, value):
    targets = np.where(task[which] == 0, value, task[which])
    return svm.full_ap(
      task._replace(**{svm.Task._fields[which]: targets}), 0, SEED, run
    )

  assert replaced(1, -1) == found != replaced(1, 1)
  assert replaced(3, -1) != found
  kept = task.test_targets[:, 0] != 0
  without = task._replace(
    test_features=task.test_features[kept], test_targets=task.test_targets[kept]
  )
  assert svm.full_ap(without, 0, SEED, run) == found


def samples_of(task, c, shots, seed=SEED):
  """What low-shot classifiers are given: which rows, and their targets."""
  seen = []

  def spy(tasks):
    tasks = list(tasks)
    for _, (_, x, y), options in tasks:
      assert x is task.features
      seen.extend(
        (rows.tolist(), y[rows].tolist()) for rows, _ in options["cv"]
      )
    return run(tasks)

  return svm.low_shot_aps(task, c, shots, seed, spy), seen


def test_low_shot_draws_k_positives_and_k_of_every_other_class(monkeypatch):
  monkeypatch.setattr(svm, "COSTS", (1.0, 0.5**4))
  task = task_of(n=120)
  _, seen = samples_of(task, 1, [2, 16])
  assert len(seen) == 2 * 5 * 2
  for number, (rows, y) in enumerate(seen):
    k = 2 if number < 10 else 16
    assert collections.Counter(y) == {1: k, -1: 2 * k}
    # No difficult ones; none twice.
    assert task.targets[rows, 1].tolist() == y
    assert len(set(rows)) == 3 * k
  # The same for every cost; five different ones for every k.
  assert seen[:5] == seen[5:10]
  assert seen[10:15] == seen[15:]
  assert len({tuple(rows) for rows, _ in seen}) == 10
  # Another seed, another class: other draws.
  assert samples_of(task, 1, [2, 16])[1] == seen
  assert samples_of(task, 1, [2], seed=4)[1] != seen[:10]
  # As many negatives as there are.
  task = task._replace(targets=-task.targets)
  negatives = int(np.sum(task.targets[:, 1] == -1))
  assert negatives < 2 * 32
  _, seen = samples_of(task, 1, [32])
  assert collections.Counter(seen[0][1]) == {1: 32, -1: negatives}


def test_low_shot_draws_19_k_for_a_class_that_is_alone(two_costs):
  task = task_of(n=120, classes=1)
  negatives = int(np.sum(task.targets == -1))
  assert 2 * 19 < negatives < 4 * 19
  aps, seen = samples_of(task, 0, [2, 4])
  counts = [collections.Counter(y) for _, y in seen]
  assert counts == [{1: 2, -1: 38}] * 10 + [{1: 4, -1: negatives}] * 10
  assert np.all((aps > 0) & (aps <= 1))


def test_low_shot_averages_the_samples_for_every_cost(monkeypatch):
  costs = (1.0, 0.5**4, 0.5**12)
  monkeypatch.setattr(svm, "COSTS", costs)
  task = task_of()
  found, seen = samples_of(task, 2, [1, 4])
  expected = np.zeros((2, 3))
  for number, (rows, y) in enumerate(seen):
    which, cost = number // 15, number // 5 % 3
    model = classifier(costs[cost]).fit(task.features[rows], y)
    scores = model.decision_function(task.test_features)
    expected[which, cost] += voc_ap(task.test_targets[:, 2], scores) / 5
  np.testing.assert_allclose(found, expected, rtol=1e-12)


# The evaluators, on images.


def maps(params, batch_stats, images):
  """Five maps, of which the last is the image, and the others are not."""
  del params, batch_stats
  x = images.astype(jnp.float32) / 255
  return [1 - x] * 4 + [x]


def subject_of(mesh, train, test, seed=SEED):
  """A network whose last feature map is the image."""
  config = ConfigDict(
    {
      "seed": seed,
      "eval": {"batch_size": 12},
      "data": {"eval_resize": 24, "image_size": 8, "num_threads": 0},
    }
  )

  def labels_of(source):
    rows = jnp.zeros((1024, 1))
    labels = np.full(len(source), -1, np.int32)
    if source.num_classes:
      labels[:] = [source[i]["label"] for i in range(len(source))]
    return Features(rows, rows, jnp.zeros((0, 256), jnp.int8), labels, {})

  return Subject(
    config=config,
    mesh=mesh,
    params=(),
    batch_stats=(),
    forward=maps,
    maps=maps,
    **dict(
      zip(
        ("train", "test"),
        splits(train, labels_of(train), test, test and labels_of(test)),
        strict=True,
      )
    ),
    clusters=None,
    check=lambda: None,
  )


def pixels_of(source):
  """The short side to 24 pixels, then all of it to 8 x 8."""
  rows = []
  for key in source.keys:
    image = Image.open(source._root / key)
    short = min(image.size)
    size = (24 * image.width // short, 24 * image.height // short)
    image = image.resize(size, Image.Resampling.BILINEAR)
    image = image.resize((8, 8), Image.Resampling.BILINEAR)
    rows.append(np.asarray(image).ravel() / np.float32(255))
  x = np.array(rows, np.float64)
  return x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("pascal")
  pascal.write(path, {"trainval": 70, "test": 50})
  return path


def test_full_on_images_of_several_classes(mesh, folder, two_costs):
  train, test = (
    sources.make(f"voc:{folder}", split) for split in ("trainval", "test")
  )
  found = dict(svm.full(subject_of(mesh, train, test)))
  x, test_x = pixels_of(train), pixels_of(test)
  expected = np.mean(
    [
      official_ap(x, train.targets[:, c], test_x, test.targets[:, c], two_costs)
      for c in range(3)
    ]
  )
  assert found == {"eval/svm_map_cv3": pytest.approx(expected, abs=1e-3)}
  assert 0.4 < expected < 0.99


def test_low_shot_on_images_of_several_classes(mesh, folder, two_costs):
  train, test = (
    sources.make(f"voc:{folder}", split) for split in ("trainval", "test")
  )
  found = dict(svm.low_shot(subject_of(mesh, train, test)))
  task = svm.Task(
    pixels_of(train), train.targets, pixels_of(test), test.targets
  )
  # One class has less than 32.
  assert 16 <= (train.targets == 1).sum(axis=0).min() < 32
  shots = [1, 2, 4, 8, 16]
  means = np.mean(
    [svm.low_shot_aps(task, c, shots, SEED, run) for c in range(3)], axis=0
  )
  assert found == {
    f"eval/low_shot_map_k{k}_best_c": pytest.approx(max(by_cost), abs=0.01)
    for k, by_cost in zip(shots, means, strict=True)
  }


def test_without_a_test_set_odd_images_are_the_test(mesh, folder, two_costs):
  source = sources.make(f"voc:{folder}", "trainval")
  task = svm.extract(subject_of(mesh, source, None), fewest=3)
  x = pixels_of(source)
  np.testing.assert_allclose(task.features, x[::2], atol=1e-6)
  np.testing.assert_allclose(task.test_features, x[1::2], atol=1e-6)
  np.testing.assert_array_equal(task.targets, source.targets[::2])
  np.testing.assert_array_equal(task.test_targets, source.targets[1::2])


def test_classes_that_cannot_be_learnt_or_tested_are_left_out(mesh, folder):
  train, test = (
    sources.make(f"voc:{folder}", split) for split in ("trainval", "test")
  )
  rare = np.where(np.arange(70) < 2, 1, -1)[:, None].astype(np.int8)
  train.targets = np.concatenate([train.targets, rare, -rare, rare], axis=1)
  common = np.ones((50, 1), np.int8)
  test.targets = np.concatenate([test.targets, common, common, -common], axis=1)
  subject = subject_of(mesh, train, test)
  assert svm.extract(subject, fewest=3).targets.shape == (70, 3)
  assert svm.extract(subject, fewest=2).targets.shape == (70, 5)


def test_an_image_that_cannot_be_read_is_left_out(mesh, tmp_path):
  targets = pascal.write(tmp_path, {"trainval": 30, "test": 25})["test"]
  (tmp_path / "JPEGImages/000034.jpg").write_bytes(b"no image")
  (tmp_path / "JPEGImages/000035.jpg").unlink()
  train, test = (
    sources.make(f"voc:{tmp_path}", split) for split in ("trainval", "test")
  )
  task = svm.extract(subject_of(mesh, train, test), fewest=1)
  assert len(task.features) == 30
  np.testing.assert_array_equal(
    task.test_targets, np.delete(targets, [3, 4], axis=0)
  )
  assert len(task.test_features) == 23
  np.testing.assert_allclose(
    np.linalg.norm(task.test_features, axis=1), 1, 1e-3
  )


def test_a_class_is_left_out_if_its_images_cannot_be_read(mesh, tmp_path):
  pascal.write(tmp_path, {"trainval": 12, "test": 12})
  train, test = (
    sources.make(f"voc:{tmp_path}", split) for split in ("trainval", "test")
  )
  # The first class needs test image 5, the second training image 3, the third
  # lacks nothing but training image 4.
  train.targets = np.tile(np.int8([1, -1, 1]), (12, 1))
  train.targets[6:, 0] = -1
  train.targets[3, 1], train.targets[4, 2] = 1, -1
  test.targets = np.tile(np.int8([-1, 1, 1]), (12, 1))
  test.targets[5, 0] = 1
  subject = subject_of(mesh, train, test)
  assert svm.extract(subject, fewest=1).targets.shape == (12, 3)
  (tmp_path / train.keys[3]).unlink()
  (tmp_path / train.keys[4]).unlink()
  task = svm.extract(subject, fewest=1)
  np.testing.assert_array_equal(
    task.targets, np.delete(train.targets, [3, 4], axis=0)[:, :1]
  )
  (tmp_path / test.keys[5]).unlink()
  assert svm.extract(subject, fewest=1) is None
  assert not list(svm.low_shot(subject))


def test_a_class_that_no_image_surely_lacks_is_left_out(mesh, folder):
  train, test = (
    sources.make(f"voc:{folder}", split) for split in ("trainval", "test")
  )
  train.targets[:, 1] = np.maximum(train.targets[:, 1], 0)
  task = svm.extract(subject_of(mesh, train, test), fewest=1)
  np.testing.assert_array_equal(task.targets, train.targets[:, ::2])


def test_other_classes_in_the_test_set_are_a_mistake(mesh, folder, tmp_path):
  pascal.write(tmp_path, {"test": 5}, classes=("bus", "cow"))
  train = sources.make(f"voc:{folder}", "trainval")
  test = sources.make(f"voc:{tmp_path}", "test")
  with pytest.raises(UserError, match="bus, cat, dog, the test set bus, cow"):
    list(svm.full(subject_of(mesh, train, test)))


def test_labels_are_one_class_against_the_rest(mesh, two_costs):
  digits = Subset(sources.make("digits"), np.arange(256))
  subject = subject_of(mesh, digits, None)
  found = dict(svm.full(subject))
  assert dict(svm.full(subject)) == found
  task = svm.extract(subject, fewest=3)
  labels = subject.train.features.labels
  np.testing.assert_array_equal(
    task.targets, 2 * np.eye(10, dtype=int)[labels[::2]] - 1
  )
  expected = [
    official_ap(
      task.features,
      task.targets[:, c],
      task.test_features,
      task.test_targets[:, c],
      two_costs,
    )
    for c in range(10)
  ]
  assert found == {"eval/svm_map_cv3": pytest.approx(np.mean(expected))}
  assert 0.9 < found["eval/svm_map_cv3"] < 0.99


def test_without_labels_there_is_nothing(mesh, folder):
  source = sources.make(f"folder:{folder}/JPEGImages")
  subject = subject_of(mesh, source, None)
  assert not list(svm.full(subject))
  assert not list(svm.low_shot(subject))
