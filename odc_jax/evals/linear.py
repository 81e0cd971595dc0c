"""Linear classifiers on the frozen network: what its features tell apart.

The network is in evaluation mode, with the running statistics of BatchNorm.
Three protocols, whose numbers are not to be compared with each other's:

* `last_lbfgs`: the pooled features of one pass, no augmentation, to the optimum
  of a convex objective. Fast: for during training, and for development.
* `last_sgd`: on the pooled features, as the papers on ResNets have it ("GAP" in
  OpenSelfSup's table, 53.42 % for ODC on ImageNet).
* `stages_sgd`: on all five stages, as OpenSelfSup ("multi", 57.70 %) and the
  papers on AlexNet have it.

Rates, schedules and crops are the config's. docs/evaluation.md has those of
each paper, with official file and line.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy import optimize

from odc_jax import mesh as mesh_lib
from odc_jax.distributed import compiler, processes
from odc_jax.evals import inputs, probe
from odc_jax.evals.inputs import Subject
from odc_jax.evals.pooling import pool
from odc_jax.logs import progress
from odc_jax.losses import cross_entropy
from odc_jax.mesh import AXIS, REPLICATED, ROWS
from odc_jax.models.functional import functional
from odc_jax.models.probes import LinearProbes

# Rows whose logits exist at once on a device.
_CHUNK = 4096
# Iterations of L-BFGS; an untrained network on digits needs 66.
_MOST_ITERATIONS = 1000


def last_lbfgs(subject: Subject) -> Iterator[tuple[str, float]]:
  """Yields `eval/linear_top1_lbfgs`, and top-5 of more than ten classes.

  Multinomial logistic regression on the pooled features, each standardised by
  the mean and the deviation of the training images, with the L2 penalty that is
  scikit-learn's default (C = 1: the mean loss plus |W|^2 / 2n; none on the
  bias). L-BFGS is SciPy's, which scikit-learn uses too; the devices that hold
  the features compute its losses and gradients.

  Args:
    subject: Reads the features and the labels.
  """
  num_classes = probe.num_classes(subject)
  if not num_classes:
    return
  x, y = subject.train.features.features, subject.train.row_labels()
  mean, deviation = _moments(x, y)
  weights, bias = regress(
    x, y, mean, deviation, num_classes, 1 / len(subject.train.rows), subject
  )
  x, y = subject.test.features.features, subject.test.row_labels()
  found = np.asarray(_hits(weights, bias, x, y, mean, deviation))
  score = probe.Score(*(found / len(subject.test.rows)).tolist())
  yield from probe.named(score, "linear", "lbfgs", num_classes)


def last_sgd(subject: Subject) -> Iterator[tuple[str, float]]:
  """Yields `eval/linear_top1_<protocol>` and `..._<protocol>_best`.

  One linear layer on the pooled features, N(0, 0.01^2) at first, trained by SGD
  on random crops and flips. The first number is that of the last epoch. The
  second is the best that any epoch had on the test set, which is what the
  official tables have. Top-5 likewise, of more than ten classes; its best may
  be another epoch's.

  Args:
    subject: Reads the section `config.eval.linear_sgd`; see `probe`.
  """
  section = subject.config.eval.linear_sgd
  subject = inputs.at_size(subject, section)
  num_classes = probe.num_classes(subject)
  if not num_classes:
    return
  learner, params, batch_stats = _last(subject, num_classes)
  recipe = probe.recipe(section)
  score = probe.scorer(subject, learner, section.test_views)
  scores: list[probe.Score] = []

  train = probe.trainer(subject, learner, recipe)
  rates = {"heads": section.learning_rate}
  with _bar("a linear classifier", recipe) as advance:

    def after_epoch(learned: probe.Learned) -> None:
      scores.extend(score(learned.params, learned.batch_stats))
      advance(len(scores))

    train(
      params,
      batch_stats,
      rates,
      section.weight_decay,
      subject.train,
      after_epoch,
    )
  protocol = probe.protocol(section)
  yield from probe.named(scores[-1], "linear", protocol, num_classes)
  best = probe.best(scores)
  yield from probe.named(best, "linear", f"{protocol}_best", num_classes)


def stages_sgd(subject: Subject) -> Iterator[tuple[str, float]]:
  """Yields `eval/linear_top1_stage<1 to 5>_<protocol>`.

  On each stage, pooled to at most 9,600 numbers (`pooling`), a linear layer,
  before it a BatchNorm without affine if so configured; all five learn
  together. The numbers are those of the last epoch, or, with `_best` behind
  their names, of each stage's best epoch on the test set. Top-5 likewise, of
  more than ten classes.

  Args:
    subject: Reads the section `config.eval.linear_stages`; see `probe`.
  """
  section = subject.config.eval.linear_stages
  subject = inputs.at_size(subject, section)
  num_classes = probe.num_classes(subject)
  if not num_classes:
    return
  learner, params, batch_stats = _stages(
    subject, num_classes, section.pooling, section.batch_norm
  )
  recipe = probe.recipe(section)
  train = probe.trainer(subject, learner, recipe)
  score = probe.scorer(subject, learner, section.test_views)
  rates = {"heads": section.learning_rate}
  scores: list[list[probe.Score]] = []
  with _bar("linear classifiers on five stages", recipe) as advance:

    def after_epoch(learned: probe.Learned) -> None:
      done = len(learned.losses)
      if section.epoch == "best" or done == recipe.num_epochs:
        scores.append(score(learned.params, learned.batch_stats))
      advance(done)

    train(
      params,
      batch_stats,
      rates,
      section.weight_decay,
      subject.train,
      after_epoch,
    )
  protocol = probe.protocol(section)
  if section.epoch == "best":
    protocol += "_best"
  for stage, of_stage in enumerate(zip(*scores, strict=True), 1):
    name = f"stage{stage}_{protocol}"
    yield from probe.named(probe.best(of_stage), "linear", name, num_classes)


def _bar(what, recipe):
  return progress.bar(
    f"epochs of {what}", recipe.num_epochs, processes.is_first()
  )


def _last(subject, num_classes):
  """Returns the learner on the pooled features, and what it begins with."""

  def features(frozen, images):
    return [subject.forward(*frozen, images).features]

  return _on(subject, features, num_classes, normalize=False)


def _stages(subject, num_classes, pooling="mean", batch_norm=True):
  """Returns the learner on the five stages, and what it begins with."""

  def features(frozen, images):
    return pool(subject.maps(*frozen, images), pooling)

  return _on(subject, features, num_classes, normalize=batch_norm)


def _on(subject, features, num_classes, *, normalize):
  """Returns linear classifiers on features, and what they begin with.

  Args:
    subject: The network.
    features: (frozen, images) -> list of features.
    num_classes: Outputs of each.
    normalize: Whether a BatchNorm comes first.
  """
  frozen = (subject.params, subject.batch_stats)
  size = subject.config.data.image_size
  images = jax.ShapeDtypeStruct((subject.mesh.size, size, size, 3), jnp.uint8)
  shapes = jax.eval_shape(features, frozen, images)
  probes = functional(
    lambda rngs: LinearProbes(
      [shape.shape[1:] for shape in shapes],
      num_classes,
      normalize=normalize,
      rngs=rngs,
    )
  )

  def apply(params, batch_stats, frozen, images, train):
    found = features(frozen, images)
    return probes.apply(params, batch_stats, found, None, train)

  init = jax.jit(
    probes.init,
    out_shardings=mesh_lib.replicated(subject.mesh),
    compiler_options=compiler.options_for_once(subject.mesh),
  )
  params, batch_stats = init(jax.random.key(subject.config.seed))
  return probe.Learner(apply, frozen), params, batch_stats


# ------------------------------------------------------------------ L-BFGS ---


def regress(
  x: Float[Array, "rows c"],
  y: Int[np.ndarray, "rows"],
  mean: Float[Array, "c"],
  deviation: Float[Array, "c"],
  num_classes: int,
  penalty: float,
  subject: Subject,
) -> tuple[Float[np.ndarray, "c k"], Float[np.ndarray, "k"]]:
  """Minimises mean cross-entropy plus penalty / 2 |W|^2.

  Every process runs the same L-BFGS on the same replicated numbers, and so
  takes the same steps.

  Args:
    x: Features, rows split over the devices.
    y: Their labels, -1 for rows that do not count.
    mean: Mean of every feature, which is subtracted.
    deviation: Standard deviation of every feature, by which it is divided.
    num_classes: k.
    penalty: Of the squared weights; the bias has none.
    subject: Its `check` is called once an evaluation of the objective.

  Returns:
    Weights and bias, float32, of the standardised features.
  """
  num_weights = x.shape[1] * num_classes

  def split(flat):
    flat = flat.astype(np.float32)
    weights = flat[:num_weights].reshape(x.shape[1], num_classes)
    return weights, flat[num_weights:]

  def objective(flat):
    subject.check()
    loss, gradients = jax.device_get(
      _loss_and_gradients(*split(flat), x, y, mean, deviation, penalty)
    )
    return float(loss), np.concatenate(
      [part.ravel().astype(np.float64) for part in gradients]
    )

  found = optimize.minimize(
    objective,
    np.zeros(num_weights + num_classes),
    jac=True,
    method="L-BFGS-B",
    # As far as float32 can tell one loss from another.
    options={"maxiter": _MOST_ITERATIONS, "ftol": 1e-9, "gtol": 1e-6},
  )
  # 1: a limit. Not `success`: in float32 the line search may find nothing
  # lower (2) at the optimum itself.
  if found.status == 1:
    processes.warn(
      f"linear: L-BFGS stopped after {found.nit:,} iterations, not yet at the "
      "optimum: eval/linear_top1_lbfgs may differ from what it would be there"
    )
  return split(found.x)


@jax.jit
def _moments(x, y):
  """Returns mean and deviation of the rows that count.

  The deviation is 1 where it is nothing but rounding, as scikit-learn's
  StandardScaler has it: a dead feature stays 0.
  """
  known = (y >= 0)[:, None]
  count = jnp.sum(known)
  mean = jnp.sum(jnp.where(known, x, 0), axis=0) / count
  squares = jnp.square(x - mean[None, :])
  deviation = jnp.sqrt(jnp.sum(jnp.where(known, squares, 0), axis=0) / count)
  is_constant = deviation <= 1e-6 * jnp.abs(mean)
  return mesh_lib.replicate((mean, jnp.where(is_constant, 1.0, deviation)))


@jax.jit
def _loss_and_gradients(weights, bias, x, y, mean, deviation, penalty):
  """Returns the objective, and its gradients by weights and bias."""

  def chunk_loss(parameters, x, y):
    known = y >= 0
    weights, bias = parameters
    losses = cross_entropy(_logits(weights, bias, x), jnp.maximum(y, 0))
    return jnp.sum(jnp.where(known, losses, 0))

  def local(parameters, mean, deviation, x, y):
    def add(total, chunk):
      x, y = chunk
      x = (x - mean[None, :]) / deviation[None, :]
      part = jax.value_and_grad(chunk_loss)(parameters, x, y)
      return jax.tree.map(jnp.add, total, part), None

    zeros = jnp.float32(0), jax.tree.map(jnp.zeros_like, parameters)
    total, _ = jax.lax.scan(add, zeros, _chunks(x, y))
    return jax.lax.psum(total, AXIS)

  loss, (by_weights, by_bias) = mesh_lib.per_shard(
    local,
    in_specs=(REPLICATED, REPLICATED, REPLICATED, ROWS, ROWS),
    out_specs=REPLICATED,
  )((weights, bias), mean, deviation, x, y)
  count = jnp.sum(y >= 0)
  loss = loss / count + penalty / 2 * jnp.sum(jnp.square(weights))
  return loss, (by_weights / count + penalty * weights, by_bias / count)


@jax.jit
def _hits(weights, bias, x, y, mean, deviation):
  """Returns how many of the rows that count are right: `probe.hits`."""

  def local(weights, bias, mean, deviation, x, y):
    def add(total, chunk):
      x, y = chunk
      x = (x - mean[None, :]) / deviation[None, :]
      return total + probe.hits(_logits(weights, bias, x), y), None

    total, _ = jax.lax.scan(add, jnp.zeros(2, jnp.int32), _chunks(x, y))
    return jax.lax.psum(total, AXIS)

  return mesh_lib.per_shard(
    local, in_specs=(*[REPLICATED] * 4, ROWS, ROWS), out_specs=REPLICATED
  )(weights, bias, mean, deviation, x, y)


def _logits(weights, bias, x):
  return jnp.matmul(x, weights, precision="highest") + bias[None, :]


def _chunks(x, y):
  """Returns a device's rows in equal parts that are not too long."""
  rows = x.shape[0]
  size = next(n for n in range(min(rows, _CHUNK), 0, -1) if rows % n == 0)
  return x.reshape(-1, size, x.shape[1]), y.reshape(-1, size)
