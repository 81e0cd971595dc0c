"""What methods without clusters hand over: k-means of their embeddings.

They are here to be compared with. While they train no image has a cluster; at
the end the embeddings of all images are clustered once.
"""

from typing import NamedTuple

import jax

from odc_jax import labels
from odc_jax.clustering import spherical
from odc_jax.clustering.kmeans import kmeans
from odc_jax.config import Config
from odc_jax.labels import Labels


class State(NamedTuple):
  """The clusters of the end; k before it.

  Attributes:
    samples: Of every image; nothing else is kept of one.
  """

  samples: Labels


def start(config: Config, num_examples: int) -> State:
  """Returns no clusters.

  Args:
    config: Reads `num_clusters`.
    num_examples: Images in the data set.
  """
  return State(labels.no_labels(num_examples, (config.num_clusters,)))


def after_step(config: Config, state: State, views, targets, batch, step):
  """Returns the state as it was, and nothing to log."""
  del config, views, targets, batch, step
  return state, {}


def finish(config: Config, state: State, head, params, embeddings) -> State:
  """Clusters the unit embeddings of all images by k-means.

  Args:
    config: Reads `num_clusters`, `num_examples`, `seed`.
    state: Without clusters.
    head: Unused: there is none.
    params: Unused.
    embeddings: Of all images, [rows, d].
  """
  del head, params
  found = kmeans(
    spherical.normalize(embeddings),
    jax.random.key(config.seed),
    num_examples=config.num_examples,
    num_clusters=config.num_clusters,
    init="k-means++",
  )
  samples = state.samples._replace(assignments=found.assignments[:, None])
  return state._replace(samples=samples)
