"""The duties between two steps: a pure function of the run's progress."""

import dataclasses
from collections.abc import Collection
from typing import NamedTuple


class Due(NamedTuple):
  """The duties before a step.

  Attributes:
    sizes: To log the clusters' sizes and changes.
    features: To pass over the images; without training they are the result.
    scores: To evaluate these features.
    save: To write a checkpoint.
    last: No step follows.
  """

  sizes: bool
  features: bool
  scores: bool
  save: bool
  last: bool


@dataclasses.dataclass(frozen=True)
class Schedule:
  """When a run owes what.

  Attributes:
    num_steps: Steps of the whole run.
    steps_per_epoch: Steps of an epoch.
    evaluate_every: Epochs from one evaluation to the next.
    save_every: Epochs from one checkpoint to the next.
    has_labels: Whether there is anything to evaluate against.
  """

  num_steps: int
  steps_per_epoch: int
  evaluate_every: int
  save_every: int
  has_labels: bool

  def before(
    self, step: int, logged: Collection[str] = (), stopping: bool = False
  ) -> Due:
    """Returns what is owed before a step.

    Args:
      step: Steps taken.
      logged: Names of the scalars that are already logged for this step: where
        a signal came between a line and the next, the next is still due.
      stopping: Whether a signal asked the run to end here.
    """
    last = step == self.num_steps
    epoch, rest = divmod(step, self.steps_per_epoch)
    epoch_ends = rest == 0
    # Without training, the first clustering is all that there is to log.
    mark = "cluster/nmi_previous" if step else "cluster/min_size"
    scores = (
      self.has_labels
      and not stopping
      and not any(name.startswith("eval/") for name in logged)
      and (last or (epoch_ends and epoch % self.evaluate_every == 0))
    )
    return Due(
      sizes=epoch_ends and (step > 0 or last) and mark not in logged,
      features=scores or (last and not stopping),
      scores=scores,
      save=last or stopping or (epoch_ends and epoch % self.save_every == 0),
      last=last,
    )
