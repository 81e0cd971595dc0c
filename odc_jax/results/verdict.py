"""What the clusters are worth, in words, without a label.

A clustering always looks like one, also where nothing was learnt. What can be
known without labels: whether the network had a chance to learn, whether the
clusters tell more than the images' colours and their 32 x 32 pixels do, and
whether they stand apart. docs/results.md has the measurements behind the
thresholds.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

# Images that are looked at: enough for two digits of each measure.
SAMPLE = 2000
# Side of what stands for an image without a network, in pixels.
SIDE = 32

_NUM_NEIGHBORS = 10
_NUM_COMPONENTS = 16

# Steps from random weights. The digits, the easiest images there are, take
# about 500 until the clusters are purer than those of their pixels, and twice
# that until they are nearly what they will be (docs/results.md).
_FEW_STEPS = 1000
# Of all images in one cluster.
_MOST_IN_ONE = 0.9
# Of all images, nearer to another cluster than to their own.
_MANY_ELSEWHERE = 0.5
# Adjusted mutual information with k-means on colours, or on pixels. Of CIFAR-10
# a random network has 0.25 and 0.29, a trained one 0.10 and 0.08.
_MOSTLY = 0.18
# Silhouettes. Of CIFAR-10 the former has -0.01, the latter 0.13; of the digits
# a run of 40 epochs has 0.49.
_BLURRED, _CLEAR = 0.05, 0.2
# Of the heads, that agree on an image.
_DISAGREE = 0.7


class Start(NamedTuple):
  """What the network was before the run, and how much it could learn.

  Attributes:
    random: Whether its weights were.
    frozen: Whether the backbone stayed as it was.
    num_steps: Steps that were taken.
  """

  random: bool
  frozen: bool
  num_steps: int


class Verdict(NamedTuple):
  """What is to be thought of the clusters.

  Attributes:
    line: In one sentence.
    details: Why, a sentence each.
    numbers: "verdict/..." -> what was measured.
  """

  line: str
  details: list[str]
  numbers: dict[str, float]


def sample(num_images: int) -> Int[np.ndarray, "m"]:
  """Returns which images to look at, in order; at most `SAMPLE`."""
  if num_images <= SAMPLE:
    return np.arange(num_images)
  rng = np.random.default_rng(0)
  return np.sort(rng.choice(num_images, SAMPLE, replace=False))


def measure(
  features: Float[np.ndarray, "m p"],
  clusters: Int[np.ndarray, "m"],
  pixels: UInt8[np.ndarray, "m s s 3"] | None,
) -> dict[str, float]:
  """Measures how far clusters go beyond what needs no network.

  Args:
    features: Of some images, unit rows.
    clusters: Theirs.
    pixels: Small pictures of them; None where there are none.

  Returns:
    `nmi_colors` and `nmi_pixels` with k-means on mean colours and on all
    pixels, into as many clusters; `ami_...`, the same adjusted for chance;
    `neighbors_...`, the share of the ten nearest images by the features that
    are among the ten nearest by these; `silhouette` among the first 16
    principal components. What cannot be computed is left out.

  Source: silhouette: Rousseeuw 1987; that in a reduced space it follows the
  accuracy: Lowe et al. 2024, arXiv:2406.02465. AMI: Vinh et al., JMLR 2010.
  """
  # Late: a second to import.
  from sklearn import cluster, decomposition, metrics

  def reduced(rows, most):
    most = min(most, *rows.shape)
    pca = decomposition.PCA(most, svd_solver="randomized", random_state=0)
    return pca.fit_transform(rows)

  m, k = len(features), len(np.unique(clusters))
  if not 1 < k < m:
    return {}
  spaces = {}
  if pixels is not None:
    flat = pixels.reshape(m, -1).astype(np.float32)
    spaces = {
      "colors": pixels.reshape(m, -1, 3).mean(axis=1).astype(np.float32),
      # Euclidean distances stay as they are, but for what hardly varies.
      "pixels": reduced(flat, 64),
    }
  near = _nearest(features)
  found = {}
  for name, space in spaces.items():
    kmeans: Any = cluster.KMeans  # annotated for "auto" alone
    plain = kmeans(k, n_init=3, random_state=0).fit_predict(space)
    found[f"nmi_{name}"] = metrics.normalized_mutual_info_score(plain, clusters)
    found[f"ami_{name}"] = metrics.adjusted_mutual_info_score(plain, clusters)
    same = near[:, :, None] == _nearest(space)[:, None, :]
    found[f"neighbors_{name}"] = np.mean(same.any(axis=2))
  found["silhouette"] = metrics.silhouette_score(
    reduced(features, _NUM_COMPONENTS), clusters, metric="cosine"
  )
  return {name: float(value) for name, value in found.items()}


def of(
  start: Start,
  measures: Mapping[str, float],
  *,
  largest: float,
  elsewhere: float,
  heads: float | None = None,
) -> Verdict:
  """Judges a clustering.

  Args:
    start: Of the run.
    measures: As `measure` returns them.
    largest: Share of the images in the largest cluster.
    elsewhere: Share of the images that are nearer to another cluster.
    heads: Share of the heads that agree on an image, a mean over the images;
      None where there is one.
  """
  numbers = dict(measures) | {"largest": largest, "elsewhere": elsewhere}
  if heads is not None:
    numbers["heads_agreement"] = heads
  lines, details = [], []
  for rule in _RULES:
    if said := rule(start, numbers):
      line, detail = said
      lines += [line] if line else []
      details.append(detail)
  if not lines:
    lines = ["Groups with blurred borders: look at them before you use them."]
    if numbers.get("silhouette", 0) >= _CLEAR:
      lines = ["Clear groups."]
  if not details:
    details.append(_beyond(numbers))
  if heads is not None and heads >= _DISAGREE:
    details.append(f"The heads agree on an image to {heads:.0%}.")
  named = {f"verdict/{name}": value for name, value in numbers.items()}
  return Verdict(lines[0], details, named)


def _steps(start, numbers):
  del numbers
  if start.random and start.frozen:
    return (
      "Not to be relied on: the network has random weights, and only the "
      "clusters were fitted to what it makes of the images.",
      "Set --config.model.weights for a network that sees.",
    )
  if start.random and start.num_steps < _FEW_STEPS:
    return (
      "Not to be relied on: too few steps to trust "
      f"({start.num_steps:,} from random weights).",
      f"From random weights {_FEW_STEPS:,} steps are the least, and "
      "photographs take far more. Train longer, or start from weights that "
      "see: --config.model.weights",
    )
  return None


def _one(start, numbers):
  del start
  if numbers["largest"] < _MOST_IN_ONE:
    return None
  return (
    "Nothing was found: nearly all images are in one cluster.",
    f"{numbers['largest']:.0%} of the images are in the largest cluster.",
  )


def _lagging(start, numbers):
  del start
  if numbers["elsewhere"] < _MANY_ELSEWHERE:
    return None
  return (
    "Not to be relied on: the clusters lag behind the network.",
    f"{numbers['elsewhere']:.0%} of the images are nearer to another cluster "
    "than to their own. Train longer.",
  )


def _colors(start, numbers):
  del start
  if numbers.get("ami_colors", 0) < _MOSTLY:
    return None
  return (
    "These groups are mostly colours.",
    "k-means on nothing but the mean colour of each image finds much the same "
    f"groups (AMI {numbers['ami_colors']:.2f}).",
  )


def _pixels(start, numbers):
  del start
  if numbers.get("ami_pixels", 0) < _MOSTLY:
    return None
  # Where groups stand apart, as digits do, pixels may well show them too.
  clear = numbers["silhouette"] >= _CLEAR
  return (
    "" if clear else "These groups are mostly what the plain pixels show.",
    f"k-means on {SIDE} x {SIDE} pixels finds much the same groups (AMI "
    f"{numbers['ami_pixels']:.2f}); the network adds little.",
  )


def _blurred(start, numbers):
  del start
  if numbers.get("silhouette", 0) >= _BLURRED:
    return None
  return (
    "No clear groups: the images shade into one another.",
    "The clusters hardly stand apart (silhouette "
    f"{numbers.get('silhouette', 0):.2f}). Try another num_clusters.",
  )


def _heads(start, numbers):
  del start
  if numbers.get("heads_agreement", 1) >= _DISAGREE:
    return None
  return (
    "To be used with care: the heads disagree.",
    f"They agree on an image to {numbers['heads_agreement']:.0%} only: other "
    "seeds would find other groups.",
  )


# The first that has a line makes it, all of them the details.
_RULES: tuple[Callable, ...] = (
  _steps,
  _one,
  _lagging,
  _colors,
  _pixels,
  _blurred,
  _heads,
)


def _beyond(numbers):
  if "silhouette" not in numbers:
    return "Too few images, or clusters, to say more."
  if "ami_colors" not in numbers:
    return (
      "Without pictures nobody can say whether they are more than colours; "
      f"silhouette {numbers['silhouette']:.2f}; {numbers['elsewhere']:.0%} of "
      "the images are nearer to another cluster."
    )
  return (
    f"They share little with k-means on colours (AMI "
    f"{numbers['ami_colors']:.2f}) and on {SIDE} x {SIDE} pixels "
    f"({numbers['ami_pixels']:.2f}); silhouette "
    f"{numbers['silhouette']:.2f}; {numbers['elsewhere']:.0%} of the images "
    "are nearer to another cluster."
  )


def _nearest(rows):
  """Returns the ten nearest others of every row, by Euclidean distance."""
  squared = np.sum(rows * rows, axis=1)
  distances = squared[:, None] + squared[None, :] - 2 * rows @ rows.T
  np.fill_diagonal(distances, np.inf)
  count = min(_NUM_NEIGHBORS, len(rows) - 1)
  return np.argpartition(distances, count - 1, axis=1)[:, :count]
