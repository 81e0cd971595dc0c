"""An order of the images in which every cluster is met about equally often.

On the host, in numpy: that of the official code, draw by draw.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int


def uniform_over_clusters(
  clusters: Int[np.ndarray, "n"],
  num_clusters: int,
  num_draws: int,
  seed: int | Sequence[int],
  *,
  count_empty: bool,
) -> Int[np.ndarray, "m"]:
  """Draws as many images of every cluster that has some.

  S = floor(m / k) + 1 of each: without replacement from a cluster of more than
  S images, else with it. Then they are shuffled and cut to m.

  Args:
    clusters: Of every image, in [0, k); images with k are never drawn.
    num_clusters: k.
    num_draws: m, how many are wanted.
    seed: Of numpy's legacy generator, whose stream never changes.
    count_empty: Whether empty clusters count towards the k of S. If there are
      any, the list is then too short and is repeated from its start.

  Returns:
    The images' numbers, [m] int32.

  Source: deepcluster util.py:UnifLabelSampler, which counts those with images;
  OpenSelfSup datasets/loader/sampler.py:set_uniform_indices, which counts all.
  """
  rng = np.random.RandomState(seed)
  # Stable: the images of a cluster in the order of their numbers.
  order = np.argsort(clusters, kind="stable")
  sizes = np.bincount(clusters, minlength=num_clusters)[:num_clusters]
  members = np.split(order, np.cumsum(sizes))[:num_clusters]
  num_counted = num_clusters if count_empty else np.count_nonzero(sizes)
  draws = num_draws // num_counted + 1
  drawn = np.concatenate(
    [
      rng.choice(images, draws, replace=bool(len(images) <= draws))
      for images in members
      if len(images)
    ]
  )
  rng.shuffle(drawn)
  return np.resize(drawn, num_draws).astype(np.int32)
