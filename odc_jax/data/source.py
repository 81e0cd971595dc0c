"""The interface of a data source: `len`, and records by index."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

Record = dict[str, Any]


@runtime_checkable
class Source(Protocol):
  """Random access to the records of a data set."""

  num_classes: int | None

  @property
  def keys(self) -> Sequence[str] | None:
    """The keys of all records, where they are known without reading."""
    ...

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Record: ...
