"""Signs of collapse, in words.

Judged from the lines of `metrics.jsonl` and nothing else, so that a run that
was killed and goes on comes to the same findings. Measured values, of healthy
runs and of runs made to collapse, are in docs/health.md.
"""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

# A network needs some hundred steps before its values mean anything: nothing is
# judged in the first epoch, and one line alone is never enough.
FIRST_EPOCH = 1.0
LINES = 3
# Two epoch ends, for what is counted over an epoch.
EPOCH_ENDS = 2

# At most 1. At 0.3 two embeddings of a batch have a mean cosine of
# 1 - 0.3^2 = 0.91. Healthy runs have 0.8 to 0.95 from the start.
LEAST_EMBEDDING_STD = 0.3
# As a share of ln K. At 0.75 the sizes of 30 clusters are as uneven as 13 equal
# clusters would be, those of 10,000 as 1,000. Healthy runs have 0.95 or more.
LEAST_ENTROPY = 0.75
# As a share of all images, and as a multiple of the mean size: with two
# clusters one of them always has half of the images.
GREATEST_SHARE = 0.5
GREATEST_SHARE_OF_MEAN = 1.5
# As a share of K. In ODC every emptied cluster is filled again at once; some
# may be empty where that is switched off.
GREATEST_EMPTY = 0.1
# As a share of K, within an epoch. At 0.5 a cluster lives for two epochs: every
# image is seen twice with the same label. One more in each step is allowed: a
# single cluster whose half of a split is too small again, which has happened
# for some epochs in runs that ended well.
GREATEST_DISSOLVED = 0.5
# As a share of 1 - 1/K, the label change of clusters drawn at random. Where the
# memory takes features as they come, the first two epochs have as much.
GREATEST_LABEL_CHANGE = 0.8
LABEL_CHANGE_FIRST_EPOCH = 2.0
# NMI of the clusters with those of an epoch ago; 1 where no image has moved. Of
# 1,797 images a single one makes 0.001.
GREATEST_NMI_PREVIOUS = 0.9999
# As a share of ln K. Healthy runs come down to 0.12, after many epochs.
LEAST_LOSS = 0.05
# A run whose clusters stand still after this epoch may simply have converged.
LAST_EPOCH_OF_LEARNING = 10.0
# As a share of ln K, the loss of a classifier that gives each cluster the same
# probability, whatever the class weights. With many clusters and few steps an
# epoch, healthy runs need three epochs to leave it.
GREATEST_LOSS = 0.97
LOSS_FIRST_EPOCH = 5.0


class Finding(NamedTuple):
  """A sign of collapse that was found in a run.

  Attributes:
    step: Step of the log line at which it was found.
    epoch: Epoch of that log line.
    sign: Its name in `SIGNS`.
    text: The number, the threshold, the likely cause and the remedy.
  """

  step: int
  epoch: float
  sign: str
  text: str


class Sign(NamedTuple):
  """One way in which a run can be sick.

  Attributes:
    scalars: The names that a log line must have to be judged.
    look: (line, clusters, images) -> whether the line is bad, and what is bad
      about it.
    meaning: What that means.
    advice: The likely cause and the remedy; a method may have its own.
    lines: After how many bad lines in a row it is found; after as many good
      ones it is over.
    first_epoch: Earlier lines are not judged, nor is this one.
    last_epoch: Nor are later lines.
  """

  scalars: tuple[str, ...]
  look: Callable[[Mapping[str, Any], int, int], tuple[bool, str]]
  meaning: str
  advice: str
  lines: int = LINES
  first_epoch: float = FIRST_EPOCH
  last_epoch: float = math.inf


def _embeddings(line, k, n):
  del k, n
  std = line["train/embedding_std"]
  return (
    std < LEAST_EMBEDDING_STD,
    f"train/embedding_std is {std:.3g}, below {LEAST_EMBEDDING_STD}",
  )


def _sizes(line, k, n):
  del n
  entropy, least = line["cluster/entropy"], LEAST_ENTROPY * math.log(k)
  return (
    entropy < least,
    f"cluster/entropy is {entropy:.3g}, below {least:.3g} "
    f"({LEAST_ENTROPY} of the ln K of {k} clusters)",
  )


def _largest(line, k, n):
  share = line["cluster/max_size"] / n
  greatest = max(GREATEST_SHARE, GREATEST_SHARE_OF_MEAN / k)
  return (
    share > greatest,
    f"cluster/max_size is {line['cluster/max_size']}, {share:.0%} of the "
    f"images, above {greatest:.0%}",
  )


def _empty(line, k, n):
  del n
  empty = line["cluster/empty"]
  return (
    empty > GREATEST_EMPTY * k,
    f"cluster/empty is {empty} of {k} clusters, above {GREATEST_EMPTY:.0%}",
  )


def _dissolved(line, k, n):
  del n
  dissolved = line["cluster/dissolved_epoch"]
  steps_per_epoch = line["step"] / line["epoch"]
  greatest = GREATEST_DISSOLVED * k + steps_per_epoch
  return (
    dissolved > greatest,
    f"cluster/dissolved_epoch is {dissolved}, above {greatest:.0f} "
    f"({GREATEST_DISSOLVED} of {k} clusters, and one a step)",
  )


def _restless(line, k, n):
  del n
  change = line["cluster/label_change"]
  greatest = GREATEST_LABEL_CHANGE * (1 - 1 / k)
  return (
    change > greatest,
    f"cluster/label_change is {change:.3g}, above {greatest:.3g} "
    f"({GREATEST_LABEL_CHANGE} of what random labels have)",
  )


def _frozen(line, k, n):
  del k, n
  value = line["cluster/nmi_previous"]
  return (
    value > GREATEST_NMI_PREVIOUS,
    f"cluster/nmi_previous is {value:.5g}, above {GREATEST_NMI_PREVIOUS}",
  )


def _trivial(line, k, n):
  del n
  change, loss = line["cluster/label_change"], line["train/loss"]
  least = LEAST_LOSS * math.log(k)
  return (
    change == 0 and loss < least,
    f"cluster/label_change is {change:.3g} and train/loss is {loss:.3g}, below "
    f"{least:.3g} ({LEAST_LOSS} of ln K)",
  )


def _chance(line, k, n):
  del n
  loss, greatest = line["train/loss"], GREATEST_LOSS * math.log(k)
  return (
    loss > greatest,
    f"train/loss is {loss:.3g}, above {greatest:.3g} ({GREATEST_LOSS} of ln K, "
    "the loss of guessing)",
  )


_UNBALANCED = (
  "Likely cause: the embeddings collapse, or there are more clusters than the "
  "images have kinds. Lower optimizer.learning_rate or num_clusters"
)

SIGNS: dict[str, Sign] = {
  "embeddings": Sign(
    ("train/embedding_std",),
    _embeddings,
    "the embeddings are nearly the same, whatever the image",
    "Likely cause: steps that are too large. Lower "
    "optimizer.learning_rate or optimizer.weight_decay, or lengthen "
    "optimizer.warmup_epochs",
  ),
  "sizes": Sign(
    ("cluster/entropy",),
    _sizes,
    "a few clusters hold most of the images",
    _UNBALANCED,
  ),
  "largest": Sign(
    ("cluster/max_size",),
    _largest,
    "one cluster swallows the others",
    _UNBALANCED,
  ),
  "empty": Sign(
    ("cluster/empty",),
    _empty,
    "clusters die and stay dead",
    _UNBALANCED,
  ),
  "dissolved": Sign(
    # An epoch's last line, which alone has the NMI, has the whole count.
    ("cluster/dissolved_epoch", "cluster/nmi_previous"),
    _dissolved,
    "a cluster lives for less than two epochs, too short to be learnt",
    "Likely cause: the embeddings move too fast. Lower num_clusters or "
    "optimizer.learning_rate",
    lines=EPOCH_ENDS,
  ),
  "restless": Sign(
    ("cluster/label_change",),
    _restless,
    "the clusters start again from noise all the time",
    "Likely cause: the network changes too fast. Lower "
    "optimizer.learning_rate or num_clusters",
    first_epoch=LABEL_CHANGE_FIRST_EPOCH,
  ),
  "frozen": Sign(
    ("cluster/nmi_previous",),
    _frozen,
    "no image moves between clusters any more, early in the run",
    "Likely cause: the network has stopped learning, or all images are "
    "in one cluster. Lower optimizer.weight_decay",
    lines=EPOCH_ENDS,
    last_epoch=LAST_EPOCH_OF_LEARNING,
  ),
  "trivial": Sign(
    ("cluster/label_change", "train/loss", "train/cluster_accuracy"),
    _trivial,
    "the clusters are known by heart, early in the run",
    "Likely cause: one cluster holds nearly everything, or the "
    "augmentation is too weak. Raise num_clusters, widen data.crop_scale",
    last_epoch=LAST_EPOCH_OF_LEARNING,
  ),
  "chance": Sign(
    # Beside an accuracy stands the loss of a classifier.
    ("train/loss", "train/cluster_accuracy"),
    _chance,
    "the classifier is no better than guessing",
    "Likely cause: optimizer.learning_rate or optimizer.weight_decay is "
    "too high, or the clusters change faster than they can be learnt. Lower "
    "these two",
    first_epoch=LOSS_FIRST_EPOCH,
  ),
}


class _Row(NamedTuple):
  """How the last lines were for one sign.

  Attributes:
    bad: Whether the last one was.
    length: How many in a row were like it.
    found: Whether the sign is found, and not over.
  """

  bad: bool = False
  length: int = 0
  found: bool = False


class Health:
  """Judges a run by its log, line by line."""

  def __init__(
    self,
    num_clusters: int,
    num_examples: int,
    advice: Mapping[str, str],
    spared: Collection[str],
  ):
    """Knows nothing yet.

    Args:
      num_clusters: K.
      num_examples: Images in the data set.
      advice: Sign -> likely cause and remedy, where the method has its own.
      spared: Signs that mean nothing for the method.
    """
    self._advice, self._spared = advice, spared
    self._sizes = num_clusters, num_examples
    self._rows = {name: _Row() for name in SIGNS}

  def judge(self, line: Mapping[str, Any]) -> list[Finding]:
    """Takes the next line of `metrics.jsonl`.

    Args:
      line: `step`, `epoch`, and scalars by name.

    Returns:
      What this line makes certain. A sign that is found is not found again
      before it is over.
    """
    findings = []
    for name, sign in SIGNS.items():
      if not sign.first_epoch < line["epoch"] <= sign.last_epoch:
        continue
      if any(scalar not in line for scalar in sign.scalars):
        continue
      if name in self._spared:
        continue
      bad, what = sign.look(line, *self._sizes)
      was = self._rows[name]
      length = was.length + 1 if bad == was.bad else 1
      certain = length >= sign.lines
      if certain and bad and not was.found:
        advice = self._advice.get(name, sign.advice)
        text = f"{what}: {sign.meaning}. {advice}; in a new --workdir"
        findings.append(Finding(line["step"], line["epoch"], name, text))
      self._rows[name] = _Row(bad, length, bad if certain else was.found)
    return findings
