"""The passes over a whole memory at the size of a large one, compiled only."""

import re

import jax.numpy as jnp
import pytest

from odc_jax import mesh as mesh_lib
from odc_jax.plan import collectives
from tests.methods import passes

ROWS = 1_281_024  # a device's: ImageNet on one, or eight times it on eight
D, K = 256, 10_000


@pytest.mark.optimized
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=[pytest.mark.slow] * (name == "k-means++"))
    for name in passes.NAMES
  ],
)
def test_a_pass_moves_centroids_and_holds_little(name, dtype):
  mesh = mesh_lib.make_mesh(8)
  n = 8 * ROWS
  compiled = passes.lower(name, mesh, n, D, K, jnp.dtype(dtype)).compile()
  # 16 arrays of a number a row are 82 MB; a second memory would be 656 MB.
  assert compiled.memory_analysis().temp_size_in_bytes < 128e6
  found = collectives.collectives(compiled.as_text())
  assert max((size for *_, size in found), default=0) <= 4 * K * (D + 1)
  # The labels of all rows would be smaller than the centroids.
  sizes = {
    int(size) for _, shape, _ in found for size in re.findall(r"\d+", shape)
  }
  assert not sizes & {n, n - 5, ROWS}
