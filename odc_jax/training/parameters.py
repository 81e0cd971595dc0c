"""How large a network is: its parameters by name, and their number by part."""

import pathlib
from typing import Any

from clu import parameter_overview

from odc_jax.files import write_whole

FILE = "parameters.txt"


def write(params: dict[str, Any], workdir: pathlib.Path) -> None:
  """Writes name, shape, type and size of every parameter to `parameters.txt`.

  Args:
    params: Of the network, nested dicts of arrays or of their shapes.
    workdir: The work directory.
  """
  # Without the means and deviations: shapes have none.
  text = parameter_overview.get_parameter_overview(params, include_stats=False)
  write_whole(workdir / FILE, f"{text}\n".encode())


def counts(params: dict[str, Any]) -> dict[str, int]:
  """Returns the number of parameters of each part: the backbone, the neck, ...

  Args:
    params: Of the network, nested dicts of arrays or of their shapes.
  """
  return {
    part: int(parameter_overview.count_parameters(of_part))
    for part, of_part in params.items()
  }
