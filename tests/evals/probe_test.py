"""The shared SGD against PyTorch's update written out, and what it scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics

from odc_jax import mesh as mesh_lib
from odc_jax.distributed.stop import StoppedError
from odc_jax.evals import probe
from tests.evals import subjects


def guess(params, batch_stats, frozen, images, train):
  """A classifier that does not look: its logits are its bias."""
  del frozen, train
  logits = params["body"]["shift"] + params["head"]["bias"]
  shape = (images.shape[0], logits.shape[0])
  return [jnp.broadcast_to(logits[None, :], shape)], batch_stats


GUESS = probe.Learner(guess, ())
START = {
  "body": {"shift": np.linspace(0, 0.5, 10, dtype=np.float32)},
  "head": {"bias": np.zeros(10, np.float32)},
}
RECIPE = probe.Recipe(
  num_epochs=10,
  batch_size=24,
  decay_epochs=(6, 8),
  crop_scale=(0.6, 1.0),
  flip=0.0,
)


def learn(subject, split, recipe=RECIPE, learner=GUESS, rates=None, **kwargs):
  rates = {"body": 0.5, "head": 2.0} if rates is None else rates
  train = probe.trainer(subject, learner, recipe)
  params = jax.device_put(START, mesh_lib.replicated(subject.mesh))
  return train(params, {}, rates, 0.01, split, **kwargs)


def some(split, count):
  return split._replace(rows=split.rows[:count], labels=split.labels[:count])


def torch_sgd(labels, recipe, rates, falls):
  """v <- .9 v + g + wd p, p <- p - lr (v, or g + wd p + .9 v)."""
  frequencies = np.bincount(labels, minlength=10) / len(labels)
  body = START["body"]["shift"].astype(np.float64)
  head = START["head"]["bias"].astype(np.float64)
  velocity = {"body": 0.0, "head": 0.0}
  losses = []
  for epoch in range(recipe.num_epochs):
    odds = np.exp(body + head)
    p = odds / odds.sum()
    losses.append(-(frequencies * np.log(p)).sum())
    factor = recipe.decay_rate ** sum(epoch >= fall for fall in falls)
    moved = {}
    for part, now in (("body", body), ("head", head)):
      gradient = p - frequencies + 0.01 * now
      velocity[part] = 0.9 * velocity[part] + gradient
      update = velocity[part]
      if recipe.nesterov:
        update = gradient + 0.9 * velocity[part]
      moved[part] = now - factor * rates[part] * update
    body, head = moved["body"], moved["head"]
  return body, head, losses


@pytest.mark.parametrize("nesterov", [False, True])
def test_updates_and_rates_are_those_of_torch(mesh, nesterov):
  subject = subjects.digits(mesh)
  split = some(subject.train, 24)
  recipe = RECIPE._replace(nesterov=nesterov)
  learned = learn(subject, split, recipe)
  # A whole batch: an epoch is a step, and the order plays no part.
  body, head, losses = torch_sgd(
    split.labels, recipe, {"body": 0.5, "head": 2.0}, falls=(6, 8)
  )
  np.testing.assert_allclose(learned.losses, losses, rtol=1e-5)
  np.testing.assert_allclose(learned.params["body"]["shift"], body, atol=1e-5)
  np.testing.assert_allclose(learned.params["head"]["bias"], head, atol=1e-5)


def test_every_epoch_is_reported_and_the_start_is_kept(mesh):
  subject = subjects.digits(mesh)
  seen = []
  learned = learn(
    subject, some(subject.train, 60), after_epoch=lambda x: seen.append(x)
  )
  assert [len(x.losses) for x in seen] == list(range(1, 11))
  assert seen[-1].losses == learned.losses
  # 60 images make two batches of 24; each epoch leaves others out.
  assert len(set(learned.losses)) == 10
  np.testing.assert_array_equal(START["head"]["bias"], 0)


def test_fewer_images_than_devices_are_repeated():
  mesh = mesh_lib.make_mesh(8)
  with jax.set_mesh(mesh):
    subject = subjects.digits(mesh)
    split = some(subject.train, 3)
    learned = learn(subject, split)
  # Eight places: the first two of the three images are there three times.
  repeated = split.labels[[0, 1, 2, 0, 1, 2, 0, 1]]
  _, _, losses = torch_sgd(
    repeated, RECIPE, {"body": 0.5, "head": 2.0}, falls=(6, 8)
  )
  np.testing.assert_allclose(learned.losses, losses, rtol=1e-5)


@pytest.mark.parametrize(
  ("wanted", "num_images", "num_devices", "expected"),
  [
    (256, 1000, 8, 256),
    (256, 1000, 6, 252),
    (256, 90, 8, 88),
    (256, 90, 1, 90),
    (256, 3, 8, 8),
    (256, 1, 1, 2),
  ],
)
def test_batch_sizes(wanted, num_images, num_devices, expected):
  assert probe.batch_size(wanted, num_images, num_devices) == expected


class Broken:
  """A data set of which some images cannot be read."""

  keys = None

  def __init__(self, source, bad):
    self.source, self.bad = source, bad
    self.num_classes = source.num_classes

  def __len__(self):
    return len(self.source)

  def __getitem__(self, index):
    if index in self.bad:
      raise OSError(f"no {index}")
    return self.source[index]


def test_an_unreadable_image_teaches_nothing_and_is_not_scored(mesh):
  subject = subjects.digits(mesh)
  split = some(subject.train, 24)
  bad = [0, 7, 8, 23]
  split = split._replace(source=Broken(split.source, bad))
  rates = {"body": 0.0, "head": 0.0}
  learned = learn(subject, split, rates=rates)
  log_p = np.asarray(jax.nn.log_softmax(START["body"]["shift"]))
  known = np.delete(split.labels, bad)
  np.testing.assert_allclose(learned.losses, -log_p[known].mean(), rtol=1e-5)

  (score,) = probe.scorer(subject._replace(test=split), GUESS)(START, {})
  # Nine is the likeliest, and then the digits before it.
  assert score.top1 == pytest.approx(np.mean(known == 9))
  assert score.top5 == pytest.approx(np.mean(known >= 5))


def test_scores_are_scikit_learn_s(mesh):
  subject = subjects.digits(mesh)
  rng = np.random.default_rng(0)
  features = subjects.features_of(subject.test)
  weights = rng.normal(size=(features.shape[1], 10)).astype(np.float32)

  def apply(params, batch_stats, frozen, images, train):
    del train
    found = subject.forward(*frozen, images).features
    return [found @ params, -(found @ params)], batch_stats

  frozen = subject.params, subject.batch_stats
  # 128 images in batches of 48: the last one is padded.
  smaller = subjects.with_config(subject, eval__batch_size=48)
  score = probe.scorer(smaller, probe.Learner(apply, frozen))
  for found, sign in zip(score(weights, {}), (1, -1), strict=True):
    logits = sign * features @ weights
    labels = subject.test.labels
    assert found.top1 == pytest.approx(
      metrics.accuracy_score(labels, logits.argmax(1))
    )
    assert found.top5 == pytest.approx(
      metrics.top_k_accuracy_score(labels, logits, k=5, labels=range(10))
    )


@pytest.mark.parametrize("views", ["ten_logits", "ten_softmax"])
def test_the_answers_to_ten_crops_are_averaged(mesh, views):
  """Nine crops are almost sure of the first class, one shouts another."""

  def apply(params, batch_stats, frozen, images, train):
    del frozen, train
    place = jnp.arange(images.shape[0]) % 10
    logits = jnp.zeros((images.shape[0], 10)).at[:, 0].set(4.0)
    shout = jnp.zeros(10).at[1].set(100.0)
    return [jnp.where(place[:, None] == 3, shout, logits)], batch_stats

  subject = subjects.digits(mesh)
  few = subject.test._replace(
    rows=subject.test.rows[:24], labels=subject.test.labels[:24]
  )
  subject = subjects.with_config(
    subject, data__image_size=24, eval__batch_size=160
  )._replace(test=few)
  score = probe.scorer(subject, probe.Learner(apply, ()), views)
  (found,) = score({}, {})
  # Means of logits: 3.6 against 10. Of probabilities: 0.78 against 0.11.
  winner = 1 if views == "ten_logits" else 0
  assert found.top1 == pytest.approx(np.mean(few.labels == winner))


def test_hits_by_hand():
  nan = np.nan
  logits = np.array([
    [5, 4, 3, 2, 1, 0],  # label 0: the highest
    [5, 4, 3, 2, 1, 0],  # label 4: the fifth
    [5, 4, 3, 2, 1, 0],  # label 5: the sixth
    [1, 1, 1, 1, 1, 1],  # all the same: the last
    [5, nan, 0, 0, 0, 0],  # a NaN is higher: the second
    [nan] * 6,  # diverged
    [5, 4, 3, 2, 1, 0],  # no label
  ], np.float32)  # fmt: skip
  labels = jnp.array([0, 4, 5, 2, 0, 0, -1])
  np.testing.assert_array_equal(probe.hits(jnp.asarray(logits), labels), [1, 3])


def test_a_signal_ends_it(mesh):
  subject = subjects.digits(mesh)
  checks = []

  def check():
    checks.append(None)
    if len(checks) == 3:
      raise StoppedError

  with pytest.raises(StoppedError):
    learn(subject._replace(check=check), some(subject.train, 24))
  checks.clear()
  smaller = subjects.with_config(subject, eval__batch_size=32)
  with pytest.raises(StoppedError):
    probe.scorer(smaller._replace(check=check), GUESS)(START, {})


def test_top_5_is_named_of_more_than_ten_classes():
  score = probe.Score(0.25, 0.5)
  assert dict(probe.named(score, "linear", "sgd100", 10)) == {
    "eval/linear_top1_sgd100": 0.25
  }
  assert dict(probe.named(score, "linear", "sgd100", 11)) == {
    "eval/linear_top1_sgd100": 0.25,
    "eval/linear_top5_sgd100": 0.5,
  }


def test_flips_and_jitter_reach_the_classifier_in_their_range():
  """A learner that keeps what it is shown."""

  def watch(params, batch_stats, frozen, images, train):
    logits, _ = guess(params, {}, frozen, images, train)
    return logits, {"images": images}

  mesh = mesh_lib.make_mesh(1)
  with jax.set_mesh(mesh):
    subject = subjects.digits(mesh)
    shown = []
    for flip, strength in ((0.0, 0.0), (0.5, 1.0)):
      recipe = RECIPE._replace(
        num_epochs=1,
        crop_scale=(1.0, 1.0),
        crop_ratio=(1.0, 1.0),
        flip=flip,
        jitter=0.4 * strength,
        lighting=0.1 * strength,
      )
      split = some(subject.train, 24)
      learned = learn(subject, split, recipe, probe.Learner(watch, ()))
      shown.append(np.asarray(learned.batch_stats["images"]))
  plain, jittered = shown
  assert plain.max() == pytest.approx(255)
  assert plain.min() == 0
  # Half of them are mirrored.
  mirrored = [
    np.corrcoef(x[:, ::-1].ravel(), y.ravel())[0, 1]
    > np.corrcoef(x.ravel(), y.ravel())[0, 1]
    for x, y in zip(plain, jittered, strict=True)
  ]
  assert 5 <= sum(mirrored) <= 19
  # Brighter or darker; and no longer grey, which only the lighting does.
  assert np.abs(plain.mean((1, 2, 3)) - jittered.mean((1, 2, 3))).max() > 10
  assert 0.2 < np.ptp(jittered, axis=3).max() < 20
