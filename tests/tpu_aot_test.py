"""Whole programs compiled for TPU slices that are not there.

  pytest -n 0 -m tpu_aot -k "v5e_2x4 and imagenet and step"

Each is one compilation, of half a minute to some minutes. They need libtpu, as
`pip install -e '.[plan]'` brings it. The batch is the published 512 for
ImageNet: two images for each of 256 chips.
"""

import importlib
import os
import re

import jax
import jax.numpy as jnp
import pytest

from configs import odc_imagenet
from odc_jax import mesh as mesh_lib
from odc_jax.clustering import neighbors
from odc_jax.config import check as config_lib
from odc_jax.methods import METHODS
from odc_jax.plan import chips, collectives, measure, tpu_slices
from odc_jax.training.programs import assemble
from tests.methods import passes

pytestmark = [
  pytest.mark.optimized,
  pytest.mark.tpu_aot,
  pytest.mark.skipif(
    # In the gate a missing libtpu is an error, which names the remedy.
    not tpu_slices.is_installed() and "CI" not in os.environ,
    reason="libtpu is not installed",
  ),
]

SIZES = {
  "imagenet": (1_281_167, {}),
  "100m": (
    100_000_000,
    {
      "num_clusters": 100_000,
      "batch_size": 4096,
      "odc.memory_dtype": "bfloat16",
    },
  ),
}
CASES = [
  ("v5e:2x4", "imagenet"),
  ("v5e:16x16", "imagenet"),
  ("v4:4x4x4", "imagenet"),
  ("v5e:16x16", "100m"),
  ("v4:4x4x4", "100m"),
]
each_case = pytest.mark.parametrize(
  ("slice_name", "size"),
  CASES,
  ids=["-".join(case).replace(":", "_") for case in CASES],
)


def prepare(slice_name, size):
  """Returns the mesh, the experiment and what a device's HBM lets one take."""
  tpu_slices.prepare_environment()
  mesh = mesh_lib.make_mesh(devices=tpu_slices.devices(slice_name))
  num_examples, overrides = SIZES[size]
  config = odc_imagenet.get_config()
  config.update_from_flattened_dict(overrides)
  config = config_lib.resolve(config, num_examples, mesh.size)
  limit, _, _ = chips.device_limits(mesh.devices.flat[0])
  assert limit is not None
  return mesh, config, limit


def assert_nothing_grows(found, num_devices, num_examples):
  """No side of what moves is the data set's, or a device's share of it."""
  rows = mesh_lib.padded_rows(num_examples)
  sizes = {
    int(number) for _, shape, _ in found for number in re.findall(r"\d+", shape)
  }
  assert not sizes & {num_examples, rows, rows // num_devices}


@each_case
def test_the_step(slice_name, size, record_property):
  mesh, config, limit = prepare(slice_name, size)
  with jax.set_mesh(mesh):
    program = assemble(config, METHODS[config.method], mesh)
    usage = measure.measure(
      measure.lowered(config, METHODS[config.method], program, mesh)["step"]
    )
  print(usage._replace(collectives=[]))
  needed = usage.arguments + usage.added
  record_property("gib", round(needed / 2**30, 2))
  assert needed < limit

  # Features and two clusters of every image.
  width = (
    config.model.embedding_dim * jnp.dtype(config.odc.memory_dtype).itemsize
  )
  share = mesh_lib.padded_rows(config.num_examples) // mesh.size * (width + 8)
  assert usage.in_place > share

  k, d = config.num_clusters, config.model.embedding_dim
  parameters = sum(leaf.size for leaf in jax.tree.leaves(program.shapes.params))
  assert max(size for *_, size in usage.collectives) <= max(
    4 * parameters, 4 * k * (d + 1)
  )
  assert_nothing_grows(usage.collectives, mesh.size, config.num_examples)


@pytest.mark.parametrize("name", METHODS)
def test_all_programs_of_a_method(name):
  """The published experiment on eight chips: the step and what is around it.

  But for the batch: eight crops of 4,096 images want more of them.
  """
  tpu_slices.prepare_environment()
  mesh = mesh_lib.make_mesh(devices=tpu_slices.devices("v5e:2x4"))
  module = importlib.import_module(f"configs.{name}_imagenet")
  config = module.get_config()
  config.batch_size = min(config.batch_size, 512)
  config = config_lib.resolve(config, 1_281_167, mesh.size)
  method = METHODS[name]
  with jax.set_mesh(mesh):
    program = assemble(config, method, mesh)
    for what, lower in measure.lowered(config, method, program, mesh).items():
      usage = measure.measure(lower)
      print(what, usage._replace(collectives=[]))
      assert_nothing_grows(usage.collectives, mesh.size, config.num_examples)


@pytest.mark.parametrize("name", passes.NAMES)
@each_case
def test_a_pass(slice_name, size, name):
  mesh, config, _ = prepare(slice_name, size)
  n, k = mesh_lib.padded_rows(config.num_examples), config.num_clusters
  d, dtype = config.model.embedding_dim, jnp.dtype(config.odc.memory_dtype)
  compiled = passes.lower(name, mesh, n, d, k, dtype).compile()
  memory_ = compiled.memory_analysis()
  print(name, memory_)
  assert memory_.temp_size_in_bytes < 512e6
  found = collectives.collectives(compiled.as_text())
  assert max((size for *_, size in found), default=0) <= 4 * k * (d + 1)
  assert_nothing_grows(found, mesh.size, config.num_examples)


@pytest.mark.parametrize("slice_name", ["v5e:2x4", "v5e:16x16"])
def test_neighbours_of_imagenet(slice_name):
  """Fifty of each of 1.28 million rows of a ViT-B, for TEMI."""
  mesh, config, limit = prepare(slice_name, "imagenet")
  n, d, k = mesh_lib.padded_rows(config.num_examples), 768, 50
  rows = mesh_lib.rows(mesh)
  x = jax.ShapeDtypeStruct((n, d), jnp.float32, sharding=rows)
  valid = jax.ShapeDtypeStruct((n,), bool, sharding=rows)
  mine = jax.jit(neighbors.nearest_others, static_argnames="k")
  with jax.set_mesh(mesh):
    compiled = mine.lower(x, valid, k=k).compile()
  usage = compiled.memory_analysis()
  print(usage)
  share = n // mesh.size
  # What was found, twice, and blocks of scores.
  assert usage.temp_size_in_bytes < 16 * share * k + 512e6
  needed = usage.argument_size_in_bytes + usage.output_size_in_bytes
  assert needed + usage.temp_size_in_bytes < limit
  found = collectives.collectives(compiled.as_text())
  assert max(size for *_, size in found) <= 4 * neighbors.CHUNK * d
  assert_nothing_grows(found, mesh.size, config.num_examples)


def test_a_frozen_vit_l_on_imagenet():
  """The plan of the whole run: one pass, then memories on its features."""
  config = odc_imagenet.get_config("frozen")
  n = 1_281_167
  plan = measure.run(config, topology_name="v5e:16x16", num_examples=n)
  assert plan["fits"]
  assert [*plan["programs"]] == ["features", "embeddings", "step", "clustering"]
  rows, devices = mesh_lib.padded_rows(n), plan["devices"]
  width = config.model.embedding_dim
  share = 4 * width * rows // devices
  # Features, and as many numbers of ODC's own memory, are written over or left
  # where they are.
  assert plan["programs"]["step"]["arguments"] > 2 * share
  assert plan["programs"]["step"]["in_place"] > share
  assert plan["programs"]["step"]["temporaries"] < 512e6
  for program in plan["programs"].values():
    found = [tuple(kind[:3]) for kind in program["collectives"]]
    assert_nothing_grows(found, devices, n)
  # All of it, on disk.
  assert plan["disk"]["features"] == 4 * width * n
