"""No network: features that were computed elsewhere."""

import dataclasses

from odc_jax.models.backbone import Backbone


@dataclasses.dataclass(frozen=True)
class Settings:
  """What is known of the features.

  Attributes:
    size: Numbers of an image, c.
  """

  size: int = 0


class Given(Backbone):
  """Stands where a backbone would; features pass it by. It has no weights."""

  def __init__(self, settings: Settings):
    """Computes nothing.

    Args:
      settings: With the size of the features.
    """
    self.num_features = settings.size
