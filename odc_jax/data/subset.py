"""Some of the records of a data set."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from odc_jax.data.source import Record, Source


class Subset:
  """The records at `rows` of another source, numbered anew from 0."""

  def __init__(self, source: Source, rows: Int[np.ndarray, "m"]):
    """Chooses records.

    Args:
      source: The data set.
      rows: Which of its records, in this order.
    """
    self._source = source
    self._rows = rows
    self.num_classes = source.num_classes
    # Once: the loader asks for them with every record.
    keys = source.keys
    self._keys = None if keys is None else [keys[int(row)] for row in rows]

  @property
  def keys(self) -> Sequence[str] | None:
    """The keys of the records, where they are known without reading."""
    return self._keys

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int) -> Record:
    return {**self._source[int(self._rows[index])], "index": index}
