"""From the config to an optax transform."""

import optax

from odc_jax.config import Config
from odc_jax.errors import UserError


def schedule(config: Config, steps_per_epoch: int) -> optax.Schedule:
  """Returns step -> learning rate.

  Args:
    config: The section `optimizer`: `schedule` is "step" (times `decay_rate`
      at each of `decay_epochs`) or "cosine" (to zero at `num_epochs`), after
      `warmup_epochs` of linear warm-up from zero.
    steps_per_epoch: Steps per epoch.

  Raises:
    UserError: If there is no such schedule.
  """
  peak, warmup = config.learning_rate, config.warmup_epochs * steps_per_epoch
  if config.schedule == "step":
    scales: dict[int, float] = {}
    for epoch in config.decay_epochs:
      step = max(0, int(epoch * steps_per_epoch) - int(warmup))
      scales[step] = scales.get(step, 1.0) * config.decay_rate
    after = optax.piecewise_constant_schedule(peak, scales)
  elif config.schedule == "cosine":
    after = optax.cosine_decay_schedule(
      peak, max(1, int(config.num_epochs * steps_per_epoch - warmup))
    )
  else:
    raise UserError(
      f"unknown optimizer.schedule {config.schedule!r}; choose step or cosine"
    )
  if not warmup:
    return after
  return optax.join_schedules(
    [optax.linear_schedule(0.0, peak, int(warmup)), after], [int(warmup)]
  )


def make(config: Config, steps_per_epoch: int) -> optax.GradientTransformation:
  """Returns SGD as PyTorch does it, the classifier with its own momentum.

  v <- momentum v + (g + weight_decay p); p <- p - lr v. Weight decay covers
  every parameter. ODC's head has momentum 0.

  Args:
    config: The section `optimizer`.
    steps_per_epoch: Steps per epoch.

  Source: OpenSelfSup configs/selfsup/odc/r50_v1.py, apis/train.py.
  """
  learning_rate = schedule(config, steps_per_epoch)

  def sgd(momentum):
    return optax.chain(
      optax.add_decayed_weights(config.weight_decay),
      optax.sgd(learning_rate, momentum=momentum or None),
    )

  return optax.partition(
    {"body": sgd(config.momentum), "head": sgd(config.head_momentum)},
    lambda params: {
      part: "head" if part == "head" else "body" for part in params
    },
  )
