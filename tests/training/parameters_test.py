"""The table of a network's parameters."""

import jax
import jax.numpy as jnp

from odc_jax.training import parameters

SHAPES = {
  "head": {"bias": jax.ShapeDtypeStruct((10,), jnp.float32)},
  "backbone": {
    "stages": {0: {"kernel": jax.ShapeDtypeStruct((3, 3, 4), jnp.bfloat16)}},
    "scale": jax.ShapeDtypeStruct((1,), jnp.float32),
  },
}


def test_every_parameter_has_a_row(tmp_path):
  parameters.write(SHAPES, tmp_path)
  *_, total = lines = (tmp_path / "parameters.txt").read_text().splitlines()
  rows = [line.strip("|").split("|") for line in lines if line[0] == "|"]
  assert [[cell.strip() for cell in row] for row in rows] == [
    ["Name", "Shape", "Dtype", "Size"],
    ["backbone/scale", "(1,)", "float32", "1"],
    ["backbone/stages/0/kernel", "(3, 3, 4)", "bfloat16", "36"],
    ["head/bias", "(10,)", "float32", "10"],
  ]
  assert total == "Total: 47 -- 116 bytes"


def test_the_number_of_each_part():
  assert parameters.counts(SHAPES) == {"head": 10, "backbone": 37}
