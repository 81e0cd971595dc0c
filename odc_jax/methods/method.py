"""The protocol: what a paper has to say for the one loop to train by it."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

from jaxtyping import Array, Bool, Float

from odc_jax import labels
from odc_jax.config import check
from odc_jax.errors import UserError


class Passes(NamedTuple):
  """The passes over all images that a re-clustering may ask for.

  Attributes:
    embeddings: () -> embeddings of all images, [n, d]: in evaluation mode, of
      centre crops. Rows are split and padded as the memories'.
    augmented: () -> embeddings of all images, [n, v, d], of the v large views:
      in training mode, of augmented crops in random order. Running statistics
      move on.
    head: (params, embeddings [b, d]) -> logits, [b, k] for each clustering.
    params: The network's parameters.
    of_epoch: () -> what `augmented` gives, of the images alone that the whole
      batches of the epoch that begins hold, and which these are, [n]. The other
      rows are zero. None where nobody asks for it.
  """

  embeddings: Callable[[], Float[Array, "n d"]]
  augmented: Callable[[], Float[Array, "n v d"]]
  head: Callable[..., tuple[Array, ...]]
  params: Any
  of_epoch: (
    Callable[[], tuple[Float[Array, "n v d"], Bool[Array, "n"]]] | None
  ) = None


@dataclasses.dataclass(frozen=True)
class Teacher:
  """A slower copy of the network that the method compares with.

  It holds the parts of the network that are trained. It starts as a copy, sees
  the large views of every batch in training mode, and gets no gradient.

  Attributes:
    decay: (config, step) -> m of teacher <- m teacher + (1 - m) student.
    moves: When that is in a step. "first": before it sees the batch, so that
      its views are by what has moved already; "before" the optimizer changes
      the student, and behind the loss; "after" it.
    evaluated: config -> whether evaluation, export and assignment take the
      teacher; else they take the student.
    copied: Parts that become the student's instead of an average.
    lacks: Parts that it has no need of, and does not hold.
    statistics: Whether it has running statistics of its own, which its own
      batches move; else it goes by the student's.
    present: config -> whether there is one at all; else it is as if the method
      had none, and `views` are the outputs of the one network.
  """

  decay: Callable[..., Any]
  moves: Literal["first", "before", "after"]
  evaluated: Callable[..., bool]
  copied: tuple[str, ...] = ()
  lacks: tuple[str, ...] = ()
  statistics: bool = True
  present: Callable[..., bool] = lambda config: True


def evaluates_teacher(config: Any) -> bool:
  """Returns whether the key `eval.network` asks for the teacher.

  Raises:
    UserError: It asks for a network that there is not.
  """
  network = config.eval.network
  if network not in ("student", "teacher"):
    raise UserError(
      f"unknown eval.network {network!r}; choose student or teacher"
    )
  return network == "teacher"


def _of_first_clustering(state):
  return labels.first_clustering(state.samples.assignments)


@dataclasses.dataclass(frozen=True)
class Method:
  """One paper's method, as functions of arrays; a misspelt name is an error.

  Its state is a NamedTuple of arrays; what lies in the field `samples` has a
  row for every image and is split over the devices, the rest is replicated.
  `config` is a resolved experiment, `views` the network's `Outputs` of every
  view of the batch, `batch["index"]` the images' numbers, int32 [b]; `step`
  counts from 0.

  Attributes:
    NAME: What its paper calls it.
    init: (config, num_examples, key) -> state, before anything is known.
      Raises UserError if a choice in the method's section of the config is
      unknown.
    targets: (config, state, views, batch, step) -> targets of the step's loss;
      no gradient flows through them.
    loss: (config, views, targets, state) -> (scalar, scalars to log).
    after_step: (config, state, views, targets, batch, step) -> (state, scalars
      to log). In the same compiled program as the step: static shapes, nothing
      on the host. The state is the one that `targets` saw.
    KEYS: The keys of the config that this method reads and not every one does,
      dotted names. None: unknown, and then no key is refused.
    idle: values -> (key, *keys that are the reason), for each key that does
      nothing in an experiment of these values (dotted name -> value), and that
      `config.options` does not know to do nothing.
    HEAD: The network's head, a name of `models.network.HEADS`.
    VIEWS_TOGETHER: Whether the views of a batch share BatchNorm statistics;
      "sizes": the large ones do, and the small ones do.
    FRESH: Parts of the network that start anew after a re-clustering.
    ADVICE: Sign of `logs.health` -> likely cause and remedy, where the method
      has its own.
    SPARED: Signs of `logs.health` that mean nothing for this method.
    AUTO: Config key -> (config, num_examples) -> (whole number, reason): sizes
      of the method's own that follow from the data where they are "auto".
    clusterings: config -> k of every clustering that the head has.
    partners: (config, state, index, key) -> another image for each of a batch,
      int32 [b], which becomes its second view. Only where the backbone is
      frozen. None: views are of the image itself.
    teacher: The slower copy; see `Teacher`. `views` then has `student` and
      `teacher`. None: there is none, and nothing is kept for one.
    prepare: params -> params, before the forward pass of every step.
    recluster_due: (config, step) -> whether to re-cluster before this step; on
      the host.
    recluster: (config, state, passes, step) -> state: called where it is due,
      outside the step; see `Passes`. Can be traced. None: clusters are found
      in the steps alone.
    finish: (config, state, head, params, embeddings) -> state: called once,
      behind the last step and before the last evaluation and checkpoint, on
      the host. `embeddings` are those of all images, `head(params, rows)` the
      logits; all by the network that is evaluated. None: nothing is left to
      do.
    grow: (config, state, embeddings, num_before) -> state: called on the host
      where images have come to a run that has clusters already. `embeddings`
      are those of all images, [n, d]; the state is of the first `num_before`,
      and what it says of them stays. Clusters keep their numbers. None: a run
      of this method cannot grow.
    vote: (state, logits, each [b, k]) -> how likely every cluster is, [b, k],
      for images new or old, by all that a finished state knows; can be traced.
      An image's cluster is the likeliest. `logits` as for `finish`. None: it is
      the nearest centroid's, and the first logits say how likely.
    vote_names: state -> which cluster every head's k-th is a vote for, [h, k];
      -1 before the state is finished. Where there is a `vote`, which is then
      the share of the heads.
    sampler: (config, clusters, step) -> indices: on the host, after a
      re-clustering, the images that are trained on until the next one, whole
      batches of them, from `clusters(state)` without padding. None: the
      loader's order.
    clusters: state -> the cluster of every image, [n]; k where it has none.
    previous_clusters: state -> what to compare these with, [n].
    dissolved_clusters: state -> how many since the epoch began, or None.
    temperature: config -> what logits are divided by for probabilities.
  """

  NAME: str
  init: Callable[..., Any]
  targets: Callable[..., Any]
  loss: Callable[..., tuple[Any, dict[str, Array]]]
  after_step: Callable[..., tuple[Any, dict[str, Array]]]
  KEYS: tuple[str, ...] | None = None
  idle: Callable[..., Iterable[tuple[str, ...]]] = lambda values: ()
  HEAD: str = "linear"
  VIEWS_TOGETHER: bool | Literal["sizes"] = True
  FRESH: tuple[str, ...] = ()
  ADVICE: Mapping[str, str] = dataclasses.field(default_factory=dict)
  SPARED: tuple[str, ...] = ()
  AUTO: Mapping[str, Callable[..., tuple[int, str]]] = dataclasses.field(
    default_factory=dict
  )
  clusterings: Callable[..., tuple[int, ...]] = check.clusterings
  partners: Callable[..., Array] | None = None
  teacher: Teacher | None = None
  prepare: Callable[[Any], Any] = lambda params: params
  recluster_due: Callable[..., bool] = lambda config, step: False
  recluster: Callable[..., Any] | None = None
  finish: Callable[..., Any] | None = None
  grow: Callable[..., Any] | None = None
  vote: Callable[..., Array] | None = None
  vote_names: Callable[[Any], Array] | None = None
  sampler: Callable[..., Any] | None = None
  clusters: Callable[[Any], Array] = _of_first_clustering
  previous_clusters: Callable[[Any], Array] = lambda state: (
    state.samples.previous
  )
  dissolved_clusters: Callable[[Any], Array] | None = None
  temperature: Callable[..., float] = lambda config: 1.0
