"""One paper per file; the papers differ only here.

A file begins with the paper's title and ends with its `METHOD`; `method.Method`
says what that must and may hold. A new method is a file here, a line below,
and its configs.
"""

from odc_jax.methods import (
  byol,
  carp,
  coke,
  deepcluster,
  deepcluster_v2,
  iic,
  local_aggregation,
  mira,
  odc,
  secu,
  sela,
  simclr,
  swav,
  temi,
)
from odc_jax.methods.method import Method

METHODS: dict[str, Method] = {
  module.__name__.rpartition(".")[2]: module.METHOD
  for module in (
    odc,
    deepcluster,
    sela,
    swav,
    deepcluster_v2,
    coke,
    secu,
    temi,
    iic,
    local_aggregation,
    simclr,
    byol,
    mira,
    carp,
  )
}
