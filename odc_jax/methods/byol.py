"""Bootstrap your own latent: a new approach to self-supervised learning.

Grill, Strub, Altche, Tallec, Richemond, Buchatskaya, Doersch, Avila Pires, Guo,
Gheshlaghi Azar, Piot, Kavukcuoglu, Munos, Valko, NeurIPS 2020,
arXiv:2006.07733. Official code: deepmind-research/byol (byol_experiment.py);
the recipe on CIFAR-10 is solo-learn's.

From one view of an image a predictor is to say what a slower copy of the
network makes of the other. Nothing is contrasted. A yardstick: it has no
clusters but those that k-means finds in its embeddings at the end.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from odc_jax.config import Config
from odc_jax.errors import UserError
from odc_jax.methods import schedules, unclustered
from odc_jax.methods.method import Method, Teacher, evaluates_teacher
from odc_jax.methods.unclustered import State


class Targets(NamedTuple):
  """z', the target network's unit projections of the views."""

  projections: tuple[Float[Array, "b d"], ...]


def init(config: Config, num_examples: int, key) -> State:
  """Returns no clusters.

  Args:
    config: Reads `num_clusters`, `data.views`, `model.predictor`,
      `byol.teacher_decay`.
    num_examples: Images in the data set.
    key: Unused: nothing here is random.

  Raises:
    UserError: If there are not two views, there is no predictor, or the decay
      is none.
  """
  del key
  if config.data.views != 2:
    raise UserError(
      "byol predicts each of two views from the other: take "
      "--config.data.views=2"
    )
  if not config.model.predictor:
    raise UserError("byol needs a predictor: --config.model.predictor=True")
  if not 0 <= config.byol.teacher_decay <= 1:
    raise UserError(
      f"byol.teacher_decay={config.byol.teacher_decay} is not between 0 and 1"
    )
  return unclustered.start(config, num_examples)


def teacher_decay(config: Config, step) -> Float[Array, "*t"]:
  """Returns tau, from `byol.teacher_decay` along a cosine to 1 at the end.

  Source: byol utils/schedules.py: target_ema.
  """
  return schedules.cosine(config, config.byol.teacher_decay, 1.0, step)


def targets(config: Config, state: State, views, batch, step) -> Targets:
  """Returns what the target network makes of both views.

  Args:
    config: Unused.
    state: Unused.
    views: Of the batch, with unit embeddings, `student` and `teacher`.
    batch: Unused.
    step: Unused.
  """
  del config, state, batch, step
  return Targets(tuple(view.embeddings for view in views.teacher))


def distances(
  predictions: Float[Array, "b d"], projections: Float[Array, "b d"]
) -> Float[Array, "b"]:
  """Returns |q - z'|^2 = 2 - 2 cos of unit rows (eq. 2)."""
  return 2 - 2 * jnp.sum(predictions * projections, axis=1)


def loss(config: Config, views, targets: Targets, state: State):
  """Returns the symmetric loss, a sum of both ways, and nothing to log.

  Source: byol_experiment.py: loss_fn.
  """
  del config, state
  first, second = (view.predictions for view in views.student)
  first_target, second_target = targets.projections
  both = distances(first, second_target) + distances(second, first_target)
  return jnp.mean(both), {}


METHOD = Method(
  NAME="BYOL",
  init=init,
  targets=targets,
  loss=loss,
  after_step=unclustered.after_step,
  KEYS=(
    "byol.teacher_decay",
    "data.views",
    "eval.network",
    "model.predictor",
  ),
  HEAD="none",
  VIEWS_TOGETHER=False,
  ADVICE={
    "embeddings": "Likely cause: the network collapses to one point. Raise "
    "byol.teacher_decay, or lower optimizer.learning_rate"
  },
  teacher=Teacher(
    teacher_decay, "after", evaluates_teacher, lacks=("predictor",)
  ),
  finish=unclustered.finish,
  # Cosines, which are not trained for a temperature.
  temperature=lambda config: 0.1,
)
