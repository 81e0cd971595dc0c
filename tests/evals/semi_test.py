"""Fine-tuning: which images, what moves, and which run is reported."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odc_jax import mesh as mesh_lib
from odc_jax.errors import UserError
from odc_jax.evals import probe, semi
from tests.evals import subjects


@pytest.fixture
def subject():
  mesh = mesh_lib.make_mesh(1)
  with jax.set_mesh(mesh):
    yield subjects.digits(mesh)


def with_labels(subject, labels):
  """Returns a subject with the labels in place of its own."""
  rows = np.arange(len(labels))
  train = subject.train._replace(rows=rows, labels=np.asarray(labels))
  return subject._replace(train=train)


def test_the_same_fraction_of_every_class_and_one_at_least(subject):
  labels = np.repeat([0, 1, 2], [205, 36, 4])
  np.random.default_rng(0).shuffle(labels)
  subject = with_labels(subject, labels)
  for percent, counts in ((1, [2, 1, 1]), (10, [20, 4, 1])):
    split = semi._drawn(subject, percent)
    assert np.bincount(split.labels).tolist() == counts
    np.testing.assert_array_equal(labels[split.rows], split.labels)
    assert len(set(split.rows)) == len(split.rows)
    again = semi._drawn(subject, percent)
    np.testing.assert_array_equal(split.rows, again.rows)
  other = semi._drawn(subjects.with_config(subject, seed=1), 10)
  assert set(other.rows) != set(split.rows)


def test_a_file_may_name_the_images(subject, tmp_path):
  # Only every other training image has a label.
  train = subject.train
  train = train._replace(rows=train.rows[::2], labels=train.labels[::2])
  subject = subject._replace(train=train)
  path = tmp_path / "names.txt"
  path.write_text("digits/0010\n\n0004\r\ndigits/0010\n0250\n")
  split = semi._listed(subject, 10, str(path))
  assert split.rows.tolist() == [4, 10, 250]
  assert split.labels.tolist() == train.labels[[2, 5, 125]].tolist()


@pytest.mark.parametrize("text", ["digits/0003\n", "", "0002\nnone.png\n"])
def test_a_list_of_images_that_are_not_there(subject, tmp_path, text):
  train = subject.train
  train = train._replace(rows=train.rows[::2], labels=train.labels[::2])
  path = tmp_path / "names.txt"
  path.write_text(text)
  listed = subjects.with_config(
    subject._replace(train=train), eval__semi__percent10__list=str(path)
  )
  with pytest.raises(UserError, match="not among the labelled") as error:
    list(semi.evaluate(listed))
  assert str(path) in str(error.value)


class Renamed:
  """Digits under other names: each in two folders, the first in none too."""

  def __init__(self, source):
    self.source = source
    self.num_classes = source.num_classes
    ends = [i // 2 for i in range(1, len(source))]
    self.keys = ["0.png"] + [f"{i % 2}/{end}.png" for i, end in enumerate(ends)]

  def __len__(self):
    return len(self.source)

  def __getitem__(self, index):
    return self.source[index]


def test_a_name_that_two_images_have_is_refused(subject, tmp_path):
  train = subject.train._replace(source=Renamed(subject.train.source))
  # 0.png, 0/0.png, 1/1.png, 0/1.png, 1/2.png, 0/2.png ...
  keys = train.source.keys
  subject = subject._replace(train=train)
  path = tmp_path / "names.txt"
  path.write_text("0/1.png\n2.png\n")
  with pytest.raises(UserError) as error:
    semi._listed(subject, 10, str(path))
  for part in (str(path), "'2.png'", *(repr(keys[i]) for i in (4, 5))):
    assert part in str(error.value)
  # A whole key is one image, though others end like it.
  path.write_text("0/1.png\n1/2.png\n0.png\n")
  assert semi._listed(subject, 10, str(path)).rows.tolist() == [0, 3, 4]
  # What has no label is not in question.
  rows = np.delete(train.rows, 5)
  labels = np.delete(train.labels, 5)
  fewer = subject._replace(train=train._replace(rows=rows, labels=labels))
  path.write_text("2.png\n")
  assert semi._listed(fewer, 10, str(path)).rows.tolist() == [4]


def test_a_list_that_is_not_there(subject):
  listed = subjects.with_config(subject, eval__semi__percent1__list="gone.txt")
  with pytest.raises(UserError, match=r"eval\.semi\.percent1\.list: gone"):
    list(semi.evaluate(listed))


@pytest.mark.slow
def test_one_and_eight_devices_learn_the_same_and_the_start_stays():
  losses = []
  for devices in (1, 8):
    mesh = mesh_lib.make_mesh(devices)
    with jax.set_mesh(mesh):
      subject = subjects.digits(mesh)
      learner, params, batch_stats = semi.classifier(subject, 10)
      before = jax.device_get((params, batch_stats))
      train = probe.trainer(subject, learner, probe.Recipe(2, 64))
      rates = {"backbone": 0.01, "head": 0.1}
      learned = train(params, batch_stats, rates, 1e-4, subject.train)
      losses.append(learned.losses)
      # All of it has learned, BatchNorm's statistics as well.
      after = jax.device_get((learned.params, learned.batch_stats))
      for old, new in zip(
        jax.tree.leaves(before), jax.tree.leaves(after), strict=True
      ):
        assert np.any(old != new)
      # The network that is evaluated has not.
      jax.tree.map(
        np.testing.assert_array_equal,
        before,
        jax.device_get((params, batch_stats)),
      )
      assert before[0]["backbone"].keys() == subject.params["backbone"].keys()
  assert losses[0][1] < losses[0][0]
  np.testing.assert_allclose(*losses, rtol=2e-3)


def test_the_fresh_classifier_begins_as_the_network_ends(subject):
  """Its features are the network's: the head alone is new."""
  learner, params, batch_stats = semi.classifier(subject, 10)
  kernel = np.asarray(params["head"]["fc"]["kernel"])
  assert kernel.std() == pytest.approx(0.01, rel=0.2)
  images = jax.random.randint(jax.random.key(0), (8, 32, 32, 3), 0, 256)
  images = images.astype(jnp.float32)
  apply = jax.jit(learner.apply, static_argnums=4)
  (logits,), stats = apply(params, batch_stats, (), images, False)
  outputs = jax.jit(subject.forward)(
    subject.params, subject.batch_stats, images
  )
  np.testing.assert_allclose(
    logits, np.asarray(outputs.features) @ kernel, rtol=1e-4, atol=1e-6
  )
  jax.tree.map(np.testing.assert_array_equal, stats, batch_stats)


@pytest.mark.slow
def test_the_best_of_the_grid_is_reported(subject, monkeypatch):
  scores = []
  real = probe.scorer

  def overheard(*args):
    score = real(*args)

    def remember(*args):
      scores.append(score(*args)[0])
      return scores[-1:]

    return remember

  monkeypatch.setattr(probe, "scorer", overheard)
  found = dict(
    semi.evaluate(
      subjects.with_config(
        subject,
        eval__semi__num_epochs=6,
        eval__semi__decay_epochs=(4, 5),
        eval__semi__percent1__learning_rates=(1e-6, 0.02, 1e-6),
        eval__semi__percent10__learning_rates=(1e-6, 0.02, 1e-6),
        eval__semi__percent1__head_multipliers=(1,),
        eval__semi__percent10__head_multipliers=(1,),
        eval__semi__batch_size=8,
      )
    )
  )
  few, more = ([score.top1 for score in scores[i : i + 3]] for i in (0, 3))
  assert found == {
    "eval/semi_1pct_top1_best_of_3": max(few),
    "eval/semi_10pct_top1_best_of_3": max(more),
  }
  # The same seed, the same run; the rate is what makes another.
  assert few[0] == few[2]
  assert more[0] == more[2] != more[1]


@pytest.mark.parametrize("which", ["train", "test"])
def test_without_labels_there_is_nothing(subject, which):
  none = np.zeros(0, np.int64)
  split = getattr(subject, which)._replace(rows=none, labels=none)
  assert list(semi.evaluate(subject._replace(**{which: split}))) == []
