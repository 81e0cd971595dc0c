"""A simple framework for contrastive learning of visual representations.

Chen, Kornblith, Norouzi, Hinton, ICML 2020, arXiv:2002.05709. Official code:
google-research/simclr (tf2/objective.py); the recipe on CIFAR-10 is
solo-learn's.

The two views of an image are to be more similar than views of different images,
all of the global batch. A yardstick: it has no clusters but those that k-means
finds in its embeddings at the end.
"""

import jax.numpy as jnp

from odc_jax import losses
from odc_jax.config import Config
from odc_jax.errors import UserError
from odc_jax.methods import unclustered
from odc_jax.methods.method import Method
from odc_jax.methods.unclustered import State


def init(config: Config, num_examples: int, key) -> State:
  """Returns no clusters.

  Args:
    config: Reads `num_clusters`, `data.views`, `simclr.temperature`.
    num_examples: Images in the data set.
    key: Unused: nothing here is random.

  Raises:
    UserError: If there is no second view, or the temperature is not above 0.
  """
  del key
  if config.data.views < 2:
    raise UserError(
      "simclr compares the views of an image: take two or more with "
      "--config.data.views"
    )
  if config.simclr.temperature <= 0:
    raise UserError(
      f"simclr.temperature={config.simclr.temperature} has to be above 0"
    )
  return unclustered.start(config, num_examples)


def targets(config: Config, state: State, views, batch, step) -> tuple[()]:
  """Returns nothing: which views belong together is known."""
  del config, state, views, batch, step
  return ()


def loss(config: Config, views, targets, state: State):
  """Returns NT-Xent over the global batch (eq. 1), and what to log.

  The mean over all views, where the official code has the sum over two of
  them; LARS does not see the factor.

  Args:
    config: Reads `simclr.temperature`, tau.
    views: Of the batch, with unit embeddings z.
    targets: Unused.
    state: Unused.
  """
  del targets, state
  embeddings = jnp.stack([view.embeddings for view in views], axis=1)
  value, accuracy = losses.nt_xent(embeddings, config.simclr.temperature)
  return value, {"train/contrast_accuracy": accuracy}


METHOD = Method(
  NAME="SimCLR",
  init=init,
  targets=targets,
  loss=loss,
  after_step=unclustered.after_step,
  KEYS=("simclr.temperature", "data.views"),
  HEAD="none",
  VIEWS_TOGETHER=False,
  finish=unclustered.finish,
  temperature=lambda config: config.simclr.temperature,
)
