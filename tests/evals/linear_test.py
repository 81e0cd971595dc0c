"""Linear classifiers against scikit-learn's, on the same features."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from odc_jax import mesh as mesh_lib
from odc_jax.data import loader
from odc_jax.data.subset import Subset
from odc_jax.evals import linear, probe
from odc_jax.evals.pooling import flat, pool
from tests.evals import subjects

EVALUATORS = [linear.last_lbfgs, linear.last_sgd, linear.stages_sgd]


def bits_of(subject):
  """Returns every bit of the network, in one piece."""
  leaves = jax.tree.leaves((subject.params, subject.batch_stats))
  return b"".join(np.asarray(leaf).tobytes() for leaf in leaves)


# L-BFGS.


def loss_of(weights, bias, x, y, penalty):
  """The objective in NumPy: mean cross-entropy and half the penalty."""
  logits = x @ weights + bias
  log_z = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1))
  own = logits[np.arange(len(y)), y] - logits.max(1)
  return np.mean(log_z - own) + penalty / 2 * np.sum(weights**2)


def test_the_optimum_is_scikit_learn_s(mesh):
  # Without a test set: even rows learn, odd ones are tested.
  subject = subjects.digits(mesh, num_test=0)
  x, labels = subjects.features_of(subject.train), subject.train.labels
  queries, truth = subjects.features_of(subject.test), subject.test.labels
  assert len(x) == len(queries) == 128
  scaler = StandardScaler().fit(x)
  # C = 1 is its default.
  theirs = LogisticRegression(tol=1e-7, max_iter=5000)
  theirs.fit(scaler.transform(x).astype(np.float64), labels)
  expected = theirs.score(scaler.transform(queries), truth)
  assert 0.3 < expected < 0.95
  assert dict(linear.last_lbfgs(subject)) == {
    "eval/linear_top1_lbfgs": pytest.approx(expected, abs=1e-6)
  }

  features, y = subject.train.features.features, subject.train.row_labels()
  mean, deviation = linear._moments(features, y)
  weights, bias = linear.regress(
    features, y, mean, deviation, 10, 1 / 128, subject
  )
  z = scaler.transform(x).astype(np.float64)
  ours = loss_of(weights, bias, z, labels, 1 / 128)
  best = loss_of(theirs.coef_.T, theirs.intercept_, z, labels, 1 / 128)
  assert best - 1e-6 < ours < best + 1e-5
  np.testing.assert_allclose(weights, theirs.coef_.T, atol=0.01)
  # Adding a number to every bias changes nothing.
  np.testing.assert_allclose(
    bias - bias.mean(),
    theirs.intercept_ - theirs.intercept_.mean(),
    atol=0.02,
  )


def test_a_limit_that_stops_it_is_told(mesh, monkeypatch, capsys):
  subject = subjects.digits(mesh, num_test=0)
  list(linear.last_lbfgs(subject))
  assert not capsys.readouterr().err
  monkeypatch.setattr(linear, "_MOST_ITERATIONS", 3)
  list(linear.last_lbfgs(subject))
  assert "stopped after 3 iterations" in capsys.readouterr().err


def draw(mesh, rows=480, c=7):
  rng = np.random.default_rng(0)
  x = rng.normal(3, 2, (rows, c)).astype(np.float32)
  x[:, 2] = 1 / 3
  y = rng.integers(-1, 4, rows).astype(np.int32)
  return jax.device_put(x, mesh_lib.rows(mesh)), y


def test_moments_are_those_of_the_labelled_rows(mesh):
  x, y = draw(mesh)
  scaler = StandardScaler().fit(np.asarray(x, np.float64)[y >= 0])
  mean, deviation = linear._moments(x, y)
  np.testing.assert_allclose(mean, scaler.mean_, rtol=1e-5)
  assert deviation[2] == 1  # and not the rounding of a third
  np.testing.assert_allclose(deviation, scaler.scale_, rtol=1e-5)


def test_gradients_by_hand_in_many_chunks(mesh, monkeypatch):
  # Forty rows at once; of 60 rows a device thirty.
  monkeypatch.setattr(linear, "_CHUNK", 40)
  x, y = draw(mesh)
  rng = np.random.default_rng(1)
  weights, bias = rng.normal(size=(7, 4)), rng.normal(size=4)
  mean, deviation = rng.normal(size=7), rng.uniform(1, 2, 7)
  loss, (by_weights, by_bias) = linear._loss_and_gradients(
    *(jnp.float32(a) for a in (weights, bias)), x, y,
    *(jnp.float32(a) for a in (mean, deviation)), 0.3,
  )  # fmt: skip
  known = y >= 0
  z, y = (np.asarray(x, np.float64)[known] - mean) / deviation, y[known]
  np.testing.assert_allclose(loss, loss_of(weights, bias, z, y, 0.3), rtol=1e-5)
  logits = z @ weights + bias
  p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  error = (p - np.eye(4)[y]) / len(y)
  np.testing.assert_allclose(
    by_weights, z.T @ error + 0.3 * weights, rtol=1e-4, atol=1e-5
  )
  np.testing.assert_allclose(by_bias, error.sum(0), rtol=1e-4, atol=1e-5)


# SGD.


def images_of(subject):
  """Returns the centre crops of the test set."""
  data = subject.config.data
  with contextlib.closing(
    loader.eval_batches(
      Subset(subject.test.source, subject.test.rows),
      batch_size=len(subject.test.rows),
      resize=data.eval_resize,
      crop=data.image_size,
      num_threads=1,
    )
  ) as batches:
    return jnp.asarray(next(batches)["image"])


@pytest.mark.slow
def test_five_stages_are_scored_by_their_running_statistics():
  mesh = mesh_lib.make_mesh(1)
  with jax.set_mesh(mesh):
    subject = subjects.digits(mesh)
    learner, params, batch_stats = linear._stages(subject, 10)
    rng = np.random.default_rng(0)
    params, batch_stats = jax.tree.map(
      lambda x: jnp.float32(rng.uniform(0.1, 1, x.shape)), (params, batch_stats)
    )
    scores = probe.scorer(subject, learner)(params, batch_stats)
    maps = jax.jit(subject.maps)(
      subject.params, subject.batch_stats, images_of(subject)
    )
  heads, norms = params["heads"], batch_stats["norms"]
  assert len(maps) == len(heads) == len(norms) == 5
  for stage, x in enumerate(jax.jit(pool)(maps)):
    head, norm = heads[str(stage)]["fc"], norms[str(stage)]
    # One number for every channel, as SyncBN has it on the pooled map.
    assert norm["mean"].shape == (x.shape[3],)
    mean, variance = (norm[part][None, None, None] for part in ("mean", "var"))
    x = flat((x - mean) / jnp.sqrt(variance + 1e-5))
    logits = np.asarray(x @ head["kernel"] + head["bias"][None])
    accuracy = np.mean(logits.argmax(1) == subject.test.labels)
    assert scores[stage].top1 == pytest.approx(accuracy, abs=0.01)


@pytest.mark.slow
def test_one_and_eight_devices_learn_the_same():
  losses = []
  for devices in (1, 8):
    mesh = mesh_lib.make_mesh(devices)
    with jax.set_mesh(mesh):
      subject = subjects.digits(mesh)
      learner, params, batch_stats = linear._last(subject, 10)
      recipe = probe.Recipe(
        3,
        32,
        decay_epochs=(2,),
        crop_scale=(0.6, 1.0),
        crop_ratio=(0.8, 1.25),
        flip=0.0,
      )
      learned = probe.trainer(subject, learner, recipe)(
        params, batch_stats, {"heads": 0.002}, 0.0, subject.train
      )
      losses.append(learned.losses)
  np.testing.assert_allclose(*losses, rtol=1e-4)
  assert losses[0][2] < losses[0][0] - 0.1


@pytest.mark.slow
def test_the_last_epoch_and_the_best_and_nothing_frozen_moves():
  mesh = mesh_lib.make_mesh(1)
  with jax.set_mesh(mesh):
    subject = subjects.digits(
      mesh,
      eval__linear_sgd__num_epochs=5,
      eval__linear_sgd__decay_epochs=(3, 4),
      # At this rate the last epoch is not the best.
      eval__linear_sgd__learning_rate=0.005,
      eval__linear_sgd__batch_size=32,
    )
    before = bits_of(subject)
    found = dict(linear.last_sgd(subject))
    assert bits_of(subject) == before

    # The official schedule, written out: the same numbers by the same seed.
    learner, params, batch_stats = linear._last(subject, 10)
    score = probe.scorer(subject, learner)
    tops = []
    recipe = probe.Recipe(
      5,
      32,
      decay_epochs=(3, 4),
      crop_scale=(0.6, 1.0),
      crop_ratio=(0.8, 1.25),
      flip=0.0,
    )
    probe.trainer(subject, learner, recipe)(
      params, batch_stats, {"heads": 0.005}, 0.0, subject.train,
      lambda x: tops.append(score(x.params, x.batch_stats)[0].top1),
    )  # fmt: skip
  assert found == {
    "eval/linear_top1_sgd5": tops[-1],
    "eval/linear_top1_sgd5_best": max(tops),
  }
  assert 0.15 < tops[-1] < max(tops)


@pytest.mark.slow
def test_the_five_stages_have_a_number_each():
  mesh = mesh_lib.make_mesh(1)
  with jax.set_mesh(mesh):
    subject = subjects.digits(
      mesh,
      eval__linear_stages__num_epochs=2,
      eval__linear_stages__decay_epochs=(1,),
      eval__linear_stages__batch_size=32,
    )
    before = bits_of(subject)
    found = dict(linear.stages_sgd(subject))
    assert bits_of(subject) == before
  assert list(found) == [
    f"eval/linear_top1_stage{stage}_sgd2" for stage in range(1, 6)
  ]
  assert found["eval/linear_top1_stage1_sgd2"] > 0.4


@pytest.mark.parametrize("evaluate", EVALUATORS)
@pytest.mark.parametrize("which", ["train", "test"])
def test_without_labels_there_is_nothing(evaluate, which):
  mesh = mesh_lib.make_mesh(1)
  with jax.set_mesh(mesh):
    subject = subjects.digits(mesh)
    none = np.zeros(0, np.int64)
    split = getattr(subject, which)._replace(rows=none, labels=none)
    assert list(evaluate(subject._replace(**{which: split}))) == []
