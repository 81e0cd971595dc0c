"""From the config to an optax transform."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from odc_jax.config import Config
from odc_jax.errors import UserError

# LARS: greatest length of a step at a rate of 1, as a share of the parameter's
# own length, where the config leaves it out.
TRUST = 0.001


def schedule(config: Config, steps_per_epoch: int) -> optax.Schedule:
  """Returns step -> learning rate.

  Zero for `hold_epochs`, then `warmup_epochs` of a straight line from
  `warmup_from` to `learning_rate`, then `schedule`. Every epoch, `decay_epochs`
  and `num_epochs` too, counts from the start of the run.

  Args:
    config: The section `optimizer`. `schedule` is "step" (times `decay_rate`
      at each of `decay_epochs`) or "cosine" (to `final_learning_rate`, or zero,
      at `num_epochs`). `hold_epochs` and `warmup_from` may be left out: 0.
    steps_per_epoch: Steps per epoch.

  Raises:
    UserError: If there is no such schedule.
  """
  peak = config.learning_rate
  hold = int(config.get("hold_epochs", 0) * steps_per_epoch)
  warmup = config.warmup_epochs * steps_per_epoch
  if config.schedule == "step":
    scales: dict[int, float] = {}
    for epoch in config.decay_epochs:
      step = max(0, int(epoch * steps_per_epoch) - hold - int(warmup))
      scales[step] = scales.get(step, 1.0) * config.decay_rate
    after = optax.piecewise_constant_schedule(peak, scales)
  elif config.schedule == "cosine":
    final = config.get("final_learning_rate", 0.0)
    after = optax.cosine_decay_schedule(
      peak,
      max(1, int(config.num_epochs * steps_per_epoch - hold - warmup)),
      final / peak if final else 0.0,
    )
  else:
    raise UserError(
      f"unknown optimizer.schedule {config.schedule!r}; choose step or cosine"
    )
  schedules: list[Any] = [after]
  boundaries: list[int] = []
  if warmup:
    first = config.get("warmup_from", 0.0)
    rise: Any = optax.linear_schedule(first, peak, int(warmup))
    # SeCu and CoKe (main.py: adjust_learning_rate) count the steps behind the
    # hold from max(1, .): the first of them already moves the network.
    start = 1 if hold else 0
    schedules.insert(0, lambda step: rise(jnp.maximum(start, step)))
    boundaries.insert(0, hold + int(warmup))
  if hold:
    schedules.insert(0, optax.constant_schedule(0.0))
    boundaries.insert(0, hold)
  return optax.join_schedules(schedules, boundaries) if boundaries else after


def make(config: Config, steps_per_epoch: int) -> optax.GradientTransformation:
  """Returns SGD, LARS or AdamW as in PyTorch, the head with its own settings.

  v <- momentum v + g'; p <- p - lr v: the learning rate comes last, so that
  the momentum builds up while the rate is 0 (`optax.lars` has it inside).

  Of "sgd", g' = g + weight_decay p; without `decay_all` only for parameters of
  two or more axes. Of "lars", g' is that times
  trust |p| / |g + weight_decay p| (times 1 where a length is 0), for parameters
  of two or more axes; for the others, biases and BatchNorm, g' = g. With
  `adapt_all` none are excepted, as in SwAV, whose LARC has |g| + weight_decay
  |p| below the line: the same within a millionth at its weight decay of 1e-6.
  With `clip` it is (g + weight_decay p) min(q / lr, 1), q = trust |p| / (|g| +
  weight_decay |p|): no layer has a greater rate than lr, as in solo-learn.

  AdamW is `adamw`, with `momentum` for its first moment.

  The head is what has the top-level key "head", or of that the part "last"
  where it has one; everything else is the body.

  Args:
    config: The section `optimizer`: `learning_rate`, `momentum`,
      `weight_decay`, and what `schedule` reads. These may be left out: `name`
      ("sgd"; or "lars", "adamw"), `adapt_all` (False), `trust` (0.001), `clip`
      (False), `decay_all` (True), `head_momentum` (that of the body; ODC's is
      0), `head_learning_rate` (a constant; the body's schedule),
      `head_freeze_epochs` (for so many epochs the head gets no update, and no
      momentum; 0).
    steps_per_epoch: Steps per epoch.

  Raises:
    UserError: If there is no such `name` or schedule.

  Source: OpenSelfSup configs/selfsup/odc/r50_v1.py, apis/train.py; SeCu
    secu/optimizer.py; SwAV main_swav.py and apex LARC; solo-learn
    solo/utils/lars.py.
  """
  name = config.get("name", "sgd")
  if name not in ("sgd", "lars", "adamw"):
    raise UserError(
      f"unknown optimizer.name {name!r}; choose sgd, lars or adamw"
    )
  learning_rate = schedule(config, steps_per_epoch)
  momentum = config.momentum

  def part(learning_rate, momentum):
    if name == "adamw":
      return adamw(learning_rate, config.weight_decay, momentum)
    return optax.chain(
      _decayed(config, name, learning_rate),
      optax.sgd(learning_rate, momentum=momentum or None),
    )

  head_rate = config.get("head_learning_rate", None)
  if head_rate is None:
    head_rate = learning_rate
  freeze = int(config.get("head_freeze_epochs", 0) * steps_per_epoch)
  head = part(
    _later(head_rate, freeze) if freeze else head_rate,
    config.get("head_momentum", momentum),
  )
  return by_part(part(learning_rate, momentum), head, freeze)


def adamw(
  learning_rate: Any, weight_decay: Any, momentum: float = 0.9
) -> optax.GradientTransformation:
  """Returns AdamW; biases, and what has but one axis, do not decay.

  Args:
    learning_rate: A number, or step -> a number.
    weight_decay: A number, or step -> a number; it is multiplied by the
      learning rate, as in PyTorch.
    momentum: Of the first moment.

  Source: DINO utils.py: get_params_groups.
  """

  def decays(path, leaf):
    return jnp.ndim(leaf) > 1 and not any(
      getattr(key, "key", None) in ("bias", "biases") for key in path
    )

  return optax.chain(
    optax.scale_by_adam(b1=momentum),
    optax.add_decayed_weights(
      weight_decay,
      mask=lambda params: jax.tree.map_with_path(decays, params),
    ),
    optax.scale_by_learning_rate(learning_rate),
  )


def by_part(
  body: optax.GradientTransformation,
  head: optax.GradientTransformation,
  freeze: int = 0,
) -> optax.GradientTransformation:
  """Returns one transform of two, which `make` says what they are for.

  Args:
    body: For everything but the head.
    head: For the head.
    freeze: For so many steps the head gets no update, and no momentum: its own
      steps are counted from then on.
  """
  if freeze:

    def thawed(step: Any, **_: Any) -> Any:
      return step >= freeze

    head = optax.conditionally_mask(head, thawed)

  def parts(params):
    labels: dict[str, Any] = dict.fromkeys(params, "body")
    if "last" in params.get("head", {}):
      labels["head"] = {**dict.fromkeys(params["head"], "body"), "last": "head"}
    elif "head" in params:
      labels["head"] = "head"
    return labels

  return optax.partition({"body": body, "head": head}, parts)


def _decayed(
  config: Config, name: str, learning_rate: Any
) -> optax.GradientTransformation:
  """Returns g -> g' of `make`."""
  decay = optax.add_decayed_weights(config.weight_decay)

  def is_matrix(params):
    return jax.tree.map(lambda p: jnp.ndim(p) > 1, params)

  if name == "sgd":
    everywhere = config.get("decay_all", True)
    return decay if everywhere else optax.masked(decay, is_matrix)
  trust = config.get("trust", TRUST)
  if config.get("clip", False):
    adapt = _clipped(learning_rate, config.weight_decay, trust)
  else:
    adapt = optax.chain(decay, optax.scale_by_trust_ratio(0.0, trust))
  if config.get("adapt_all", False):
    return adapt
  return optax.masked(adapt, is_matrix)


def _clipped(
  learning_rate: Any, weight_decay: float, trust: float
) -> optax.GradientTransformation:
  """Returns g -> g' of `make` with `clip`."""

  def init(params):
    del params
    return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

  def update(updates, state, params=None):
    rate: Any = learning_rate
    if callable(rate):
      rate = rate(state.count)

    def adapted(g, p):
      of_p, of_g = jnp.linalg.norm(p.ravel()), jnp.linalg.norm(g.ravel())
      q = trust * of_p / (of_g + weight_decay * of_p + 1e-8)
      scaled = (g + weight_decay * p) * jnp.minimum(q / rate, 1)
      # Officially not even the decay where a length is 0.
      return jnp.where((of_p > 0) & (of_g > 0), scaled, g)

    updates = jax.tree.map(adapted, updates, params)
    return updates, optax.ScaleByScheduleState(state.count + 1)

  return optax.GradientTransformation(init, update)


def _later(rate: Any, steps: int) -> Any:
  """Returns the rate for a part that counts from its own first step."""
  return (lambda count: rate(count + steps)) if callable(rate) else rate
