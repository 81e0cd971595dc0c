"""Exploring the Limits of Deep Image Clustering using Pretrained Models.

Adaloglou, Michels, Kalisch, Kollmann, BMVC 2023, arXiv:2303.17896. Official
code: TEMI-official-BMVC2023 (losses/mi.py, losses/multihead_losses.py,
model_builders/multi_head.py, train_main.py, gen_embeds.py).

On fixed features. A step takes images, and with each of them one of its nearest
neighbours, drawn anew. Many heads, each with a slower copy of itself for a
teacher, learn to put the two into the same cluster, while an exponent and the
clusters' running shares keep these balanced. A pair counts for as much as the
teachers of all heads together believe that the two belong together, which mutes
false neighbours. The head of the lowest loss can be chosen without a label.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from odc_jax import labels
from odc_jax import mesh as mesh_lib
from odc_jax.clustering import ensemble, neighbors
from odc_jax.config import Config
from odc_jax.config import check as config_lib
from odc_jax.errors import UserError
from odc_jax.methods.method import Method, Teacher

_CHOICES = {
  "objective": ("temi", "scan"),
  "weights": ("heads", "own", "none"),
}

# Weight of the mean's entropy in SCAN's loss.
_ENTROPY_WEIGHT = 5.0


class Samples(NamedTuple):
  """The memory of every image; rows split over the devices.

  Attributes:
    neighbors: Its nearest others, nearest first.
    assignments: Clusters in [0, k) by every head's teacher at the last visit; k
      before the first, and on pad rows.
    previous: Those by the best head when this epoch began.
    voted: Those by the vote of all heads, once the run is finished; k before.
  """

  neighbors: Int[Array, "n m"]
  assignments: Int[Array, "n h"]
  previous: Int[Array, "n"]
  voted: Int[Array, "n"]


class TEMIState(NamedTuple):
  """The neighbours, and what is known of the heads.

  Attributes:
    samples: Of all images.
    prior: p_k, the running share of every cluster, for each head.
    sizes: Images in each cluster, for each head.
    losses: Each head's loss, summed since this epoch began.
    best: The head of the lowest loss in the last whole epoch.
    names: What each head's clusters are called where all of them vote; -1
      before the run is finished.
  """

  samples: Samples
  prior: Float[Array, "h k"]
  sizes: Int[Array, "h k"]
  losses: Float[Array, "h"]
  best: Int[Array, ""]
  names: Int[Array, "h k"]


class Targets(NamedTuple):
  """The targets of the step's loss.

  Attributes:
    teacher: log q_t, by every head's teacher, for both views.
    prior: p_k with this batch in it, for each head.
    weights: w of every pair, for each head.
  """

  teacher: Float[Array, "2 h b k"]
  prior: Float[Array, "h k"]
  weights: Float[Array, "h b"]


def idle(values: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
  """Yields each key that does nothing, and the key that is the reason."""
  if values.get("temi.objective") == "scan":
    yield "temi.beta", "temi.objective"


def init(config: Config, num_examples: int, key) -> TEMIState:
  """Returns a state of images without neighbours, which `recluster` finds.

  Args:
    config: Reads `num_clusters`, `temi.*`.
    num_examples: Images in the data set.
    key: Unused: the heads are in the network.

  Raises:
    UserError: If one of the choices in the section `temi` does not exist, or
      if there are no more images than neighbours.
  """
  del key
  temi, k = config.temi, config.num_clusters
  for name, choices in _CHOICES.items():
    if temi[name] not in choices:
      raise UserError(
        f"unknown temi.{name} {temi[name]!r}; choose {', '.join(choices)}"
      )
  if not 0 < temi.num_neighbors < num_examples:
    raise UserError(
      f"temi.num_neighbors={temi.num_neighbors} is not between 1 and "
      f"{num_examples - 1}, one less than there are images; choose another "
      "with --config.temi.num_neighbors"
    )
  n, h = mesh_lib.padded_rows(num_examples), temi.num_heads
  return TEMIState(
    Samples(
      neighbors=jnp.zeros((n, temi.num_neighbors), jnp.int32),
      assignments=jnp.full((n, h), k, jnp.int32),
      previous=jnp.full((n,), k, jnp.int32),
      voted=jnp.full((n,), k, jnp.int32),
    ),
    prior=jnp.full((h, k), 1 / k),
    sizes=jnp.zeros((h, k), jnp.int32),
    losses=jnp.zeros((h,)),
    best=jnp.int32(0),
    names=jnp.full((h, k), -1, jnp.int32),
  )


def recluster_due(config: Config, step: int) -> bool:
  """Returns whether this is the first step; never again after it."""
  del config
  return step == 0


def recluster(config: Config, state: TEMIState, passes, step: int) -> TEMIState:
  """Finds the neighbours of all images.

  Args:
    config: Reads `num_examples`, `temi.num_neighbors`.
    state: Without neighbours.
    passes: Whose embeddings are the fixed features.
    step: 0.

  Source: TEMI gen_embeds.py: compute_neighbors.
  """
  del step
  embeddings = passes.embeddings()
  valid = jnp.arange(embeddings.shape[0]) < config.num_examples
  found = neighbors.nearest_others(
    embeddings, valid, k=config.temi.num_neighbors
  )
  return state._replace(samples=state.samples._replace(neighbors=found.rows))


def partners(
  config: Config, state: TEMIState, index: Int[Array, "b"], key
) -> Int[Array, "b"]:
  """Draws one of the neighbours of every image, each equally likely.

  Source: TEMI loaders/embedNN.py: EmbedNN.
  """
  mined = state.samples.neighbors[index]
  chosen = jax.random.randint(key, index.shape, 0, config.temi.num_neighbors)
  return jnp.take_along_axis(mined, chosen[:, None], axis=1)[:, 0]


def teacher_decay(config: Config, step) -> float:
  """Returns m of teacher <- m teacher + (1 - m) student, whatever the step."""
  del step
  return config.temi.teacher_momentum


def teacher_temperature(config: Config, step) -> Float[Array, ""]:
  """Returns tau_t: a straight line over the first epochs, then constant.

  Args:
    config: Reads `temi.teacher_temperature`, where it begins and ends, and
      `temi.teacher_temperature_epochs`, how many epochs it has for that.
    step: The number of this step, from 0.

  Source: TEMI losses/multihead_losses.py: teacher_temp_schedule.
  """
  first, last = config.temi.teacher_temperature
  line = jnp.linspace(first, last, config.temi.teacher_temperature_epochs)
  epoch = step // config_lib.steps_per_epoch(config)
  return jnp.append(line, last)[jnp.minimum(epoch, len(line))]


def targets(config: Config, state: TEMIState, views, batch, step) -> Targets:
  """Asks the teachers about the batch.

  Args:
    config: Reads `num_examples`, `batch_size`, `temi.*`.
    state: Before this step.
    views: Of the images and of their partners, `student` and `teacher`.
    batch: Unused.
    step: The number of this step, from 0.

  Source: TEMI losses/multihead_losses.py: forward.
  """
  del batch
  temi = config.temi
  logits = _of_heads(views.teacher)
  teacher = jax.nn.log_softmax(logits / teacher_temperature(config, step))
  q = jnp.exp(teacher)
  prior = temi.prior_momentum * state.prior + (
    1 - temi.prior_momentum
  ) * jnp.mean(q, axis=(0, 2))
  return Targets(teacher, prior, pair_weights(q, temi.weights))


def pair_weights(q: Float[Array, "2 h b k"], kind: str) -> Float[Array, "h b"]:
  """Returns w, how strongly teachers believe that two are of one cluster.

  Args:
    q: Probabilities by every head's teacher, for both views.
    kind: "heads": sum_k q_k q'_k, a mean over all heads for each of them;
      "own": that of the head itself; "none": 1.

  Source: TEMI losses/multihead_losses.py; losses/mi.py: WMI, PMI.
  """
  if kind == "none":
    return jnp.ones(q.shape[1:3])
  own = jnp.sum(q[0] * q[1], axis=2)
  if kind == "own":
    return own
  return jnp.broadcast_to(jnp.mean(own, axis=0, keepdims=True), own.shape)


def information_loss(
  student: Float[Array, "2 h b k"], targets: Targets, beta: float
) -> Float[Array, "h"]:
  """Returns minus the weighted pointwise mutual information, of each head.

  -w log sum_k (q_s(k|x) q_t(k|x'))^beta / p_k, a mean over the pairs and over
  both ways round. beta below 1 keeps clusters of one size.

  Args:
    student: log q_s.
    targets: By the teachers.
    beta: The exponent.

  Source: TEMI losses/mi.py: beta_mi; losses/multihead_losses.py.
  """
  both = beta * (student + targets.teacher[::-1])
  information = jax.nn.logsumexp(
    both - jnp.log(targets.prior)[None, :, None, :], axis=3
  )
  return -jnp.mean(targets.weights[None] * information, axis=(0, 2))


def scan_loss(
  student: Float[Array, "2 h b k"], targets: Targets
) -> Float[Array, "h"]:
  """Returns SCAN's loss, with a teacher, of each head.

  -log sum_k q_s(k|x) q_t(k|x') - 5 H(mean q_s), the one summed over both ways
  round and halved, the other a mean over both views.

  Source: TEMI losses/mi.py: SCAN.
  """
  agreement = jax.nn.logsumexp(student + targets.teacher[::-1], axis=3)
  mean = jnp.mean(jnp.exp(student), axis=2)
  negative_entropy = jnp.mean(jnp.sum(mean * jnp.log(mean), axis=2), axis=0)
  return -jnp.mean(agreement, axis=(0, 2)) + _ENTROPY_WEIGHT * negative_entropy


def head_losses(config: Config, views, targets: Targets) -> Float[Array, "h"]:
  """Returns the loss of each head."""
  temi = config.temi
  logits = _of_heads(views.student) / temi.student_temperature
  student = jax.nn.log_softmax(logits)
  if temi.objective == "scan":
    return scan_loss(student, targets)
  return information_loss(student, targets, temi.beta)


def loss(config: Config, views, targets: Targets, state: TEMIState):
  """Returns the mean loss of the heads, and what to log."""
  del state
  by_head = head_losses(config, views, targets)
  return jnp.mean(by_head), {
    "train/head_loss_min": jnp.min(by_head),
    "train/pair_weight": jnp.mean(targets.weights),
  }


def after_step(
  config: Config, state: TEMIState, views, targets: Targets, batch, step
):
  """Writes the teachers' clusters, and adds up the heads' losses.

  Args:
    config: Reads `num_examples`, `batch_size`, `temi.*`.
    state: The state that `targets` saw.
    views: As for `targets`.
    targets: Of this step.
    batch: With `index`, int32 [b].
    step: The number of this step, from 0.

  Returns:
    The state and the `cluster/...` scalars of `logs.scalars`.

  Source: TEMI train_main.py: train_dino (best_head).
  """
  index = batch["index"]
  num_steps = config_lib.steps_per_epoch(config)
  begins, ends = step % num_steps == 0, (step + 1) % num_steps == 0
  samples = state.samples
  previous = jax.lax.cond(
    begins, lambda: _of_best(state), lambda: samples.previous
  )

  old = samples.assignments[index]
  new = jnp.argmax(targets.teacher[0], axis=2).T.astype(jnp.int32)
  last = labels.last_occurrence(index)
  n = samples.assignments.shape[0]
  assignments = samples.assignments.at[jnp.where(last, index, n)].set(
    new, mode="drop"
  )
  sizes = state.sizes + _count(new, last, state.sizes.shape[1])
  sizes -= _count(old, last, state.sizes.shape[1])

  by_head = head_losses(config, views, targets)
  sums = jnp.where(begins, 0.0, state.losses) + by_head
  best = jnp.where(ends, jnp.argmin(sums).astype(jnp.int32), state.best)
  change = jnp.mean(jnp.take(new != old, state.best, axis=1))
  samples = samples._replace(assignments=assignments, previous=previous)
  state = TEMIState(samples, targets.prior, sizes, sums, best, state.names)
  return state, {
    "cluster/label_change": change,
    **labels.size_scalars(sizes[state.best]),
  }


def finish(config: Config, state: TEMIState, head, params, embeddings):
  """Lets all heads vote, each image by the teachers of the end.

  The official code takes the head of the lowest loss.

  Args:
    config: Reads `num_clusters`, `num_examples`.
    state: After the last step.
    head: (params, rows) -> logits of every head.
    params: The teachers'.
    embeddings: Of all images, [rows, d].
  """
  valid = jnp.arange(embeddings.shape[0]) < config.num_examples
  assignments = ensemble.by_every_head(head, params, embeddings)
  assignments = jnp.where(valid[:, None], assignments, config.num_clusters)
  order = np.argsort(np.asarray(state.losses), kind="stable")
  found = ensemble.agree(assignments, config.num_clusters, order.tolist())
  samples = state.samples._replace(assignments=assignments)
  samples = samples._replace(voted=found.clusters)
  return state._replace(samples=samples, names=jnp.asarray(found.names))


def vote(state: TEMIState, logits) -> Float[Array, "b k"]:
  """Returns the share of the heads that vote for each cluster."""
  return ensemble.shares(ensemble.likeliest(logits), state.names)


def clusters(state: TEMIState) -> Int[Array, "n"]:
  """Returns the cluster of every image: by vote, once the run is finished.

  Before, by the teacher of the best head.
  """
  finished = state.names[0, 0] >= 0
  return jnp.where(finished, state.samples.voted, _of_best(state))


def _of_best(state: TEMIState) -> Int[Array, "n"]:
  return jnp.take(state.samples.assignments, state.best, axis=1)


def temperature(config: Config) -> float:
  """Returns tau_s: a head's logits are cosines, times a learnt scale."""
  return config.temi.student_temperature


def _of_heads(views) -> Float[Array, "2 h b k"]:
  """Returns the logits of all heads for both views."""
  return jnp.stack([jnp.stack(view.logits) for view in views])


def _count(
  clusters: Int[Array, "b h"], counts: Array, num_clusters: int
) -> Int[Array, "h k"]:
  """Counts a batch by head and cluster; those of cluster k nowhere."""
  # The whole batch on every device before it meets the replicated sizes.
  clusters, counts = mesh_lib.replicate((clusters, counts))
  same = clusters[:, :, None] == jnp.arange(num_clusters)[None, None, :]
  return jnp.sum(same & counts[:, None, None], axis=0, dtype=jnp.int32)


def clusterings(config: Config) -> tuple[int, ...]:
  """Returns k of every head."""
  return (config.num_clusters,) * config.temi.num_heads


METHOD = Method(
  NAME="TEMI",
  init=init,
  targets=targets,
  loss=loss,
  after_step=after_step,
  HEAD="clusterers",
  KEYS=(
    "temi.num_heads",
    "temi.num_neighbors",
    "temi.objective",
    "temi.weights",
    "temi.beta",
    "temi.prior_momentum",
    "temi.student_temperature",
    "temi.teacher_temperature",
    "temi.teacher_temperature_epochs",
    "temi.teacher_momentum",
    *("model.head_layers", "model.head_hidden", "model.head_bottleneck"),
  ),
  idle=idle,
  ADVICE={
    "trivial": "Likely cause: one cluster holds nearly everything. Lower "
    "temi.beta or optimizer.learning_rate, or raise num_clusters",
  },
  # The loss is an information, not the loss of a classifier.
  SPARED=("chance",),
  clusterings=clusterings,
  partners=partners,
  # Of a frozen backbone both have the same statistics.
  teacher=Teacher(teacher_decay, "after", lambda _: True, statistics=False),
  recluster_due=recluster_due,
  recluster=recluster,
  finish=finish,
  vote=vote,
  vote_names=lambda state: state.names,
  clusters=clusters,
  temperature=temperature,
)
