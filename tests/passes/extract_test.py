"""The pass over a data set: every row once, and the padding zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from odc_jax import mesh as mesh_lib
from odc_jax.data import resident, sources
from odc_jax.data.capacity import Choice
from odc_jax.models.network import Outputs
from odc_jax.passes import extract as extract_lib


def forward(params, batch_stats, images):
  x = images.astype(jnp.float32).mean((1, 2))
  # No row is zero, not even that of a black image.
  maps = x * params["scale"] + batch_stats["shift"]
  return Outputs(maps, maps[:, :2] - 1000, maps)


def batches_of(images, labels, batch_size):
  """As the loader makes them: the last one filled with its last image."""
  n = len(images)
  for start in range(0, n, batch_size):
    index = np.arange(start, start + batch_size)
    real = index < n
    source = np.minimum(index, n - 1)
    yield {
      "image": images[source],
      "index": np.where(real, index, n).astype(np.int32),
      "label": np.where(real, labels[source], -1).astype(np.int32),
      "key": [f"image {i}" if i < n else "" for i in index],
    }


# The second fills the memory: the index that means no example is past its end.
@pytest.mark.parametrize(("n", "rows"), [(20, 1024), (1024, 1024)])
def test_every_row_once_in_order_and_padding_zero(mesh, n, rows):
  batch_size = {20: 8, 1024: 360}[n]
  rng = np.random.default_rng(0)
  images = rng.integers(256, size=(n, 2, 2, 3), dtype=np.uint8)
  # A true label of -1 is not padding.
  labels = rng.integers(-1, 10, size=n).astype(np.int32)
  params = {"scale": jnp.float32(0.5)}
  stats = {"shift": jnp.float32(3)}
  extract = extract_lib.extractor(forward, mesh)
  found = extract(params, stats, batches_of(images, labels, batch_size), n)

  expected = images.mean((1, 2), dtype=np.float64) * 0.5 + 3
  assert found.features.shape == (rows, 3)
  assert found.embeddings.shape == (rows, 2)
  np.testing.assert_allclose(found.features[:n], expected, rtol=1e-6)
  np.testing.assert_allclose(
    found.embeddings[:n], expected[:, :2] - 1000, rtol=1e-6
  )
  np.testing.assert_array_equal(found.features[n:], 0)
  np.testing.assert_array_equal(found.embeddings[n:], 0)
  np.testing.assert_array_equal(found.labels, labels)
  assert found.keys == {i: f"image {i}" for i in range(n)}
  np.testing.assert_array_equal(found.signatures[n:], 0)
  for part in (found.features, found.embeddings, found.signatures):
    assert part.sharding.is_equivalent_to(mesh_lib.rows(mesh), 2)


@pytest.mark.parametrize("side", [0, 8])
def test_images_on_the_devices_give_what_those_on_the_host_do(mesh, side):
  """The digits as they are, 8 x 8: not one pixel is resampled."""
  digits = sources.make("digits")
  config = ConfigDict(
    {
      "data": {"eval_resize": 8, "image_size": 6, "num_threads": 0},
      "eval": {"batch_size": 500},
    }
  )
  data = digits
  if side:
    choice = Choice(side, side, "")
    data = resident.read(
      digits, choice, mesh, num_threads=0, met=lambda bad: None
    )
  params, stats = {"scale": jnp.float32(0.5)}, {"shift": jnp.float32(3)}
  with extract_lib.reading(data, config, mesh) as batches:
    extract = extract_lib.extractor(forward, mesh)
    found = extract(params, stats, batches, len(digits))
  pixels = np.stack([digits[i]["image"] for i in range(1797)])[:, 1:7, 1:7]
  expected = pixels.mean((1, 2), dtype=np.float64) * 0.5 + 3
  np.testing.assert_allclose(found.features[:1797], expected, rtol=1e-6)
  np.testing.assert_array_equal(found.features[1797:], 0)
  assert found.labels.tolist() == [digits[i]["label"] for i in range(1797)]
  assert found.keys == {i: digits[i]["key"] for i in range(1797)}


def test_a_second_pass_uses_the_new_weights():
  mesh = mesh_lib.make_mesh(8)
  images = np.full((8, 1, 1, 3), 10, np.uint8)
  labels = np.zeros(8, np.int32)
  with jax.set_mesh(mesh):
    extract = extract_lib.extractor(forward, mesh)
    for scale in (1.0, 2.0):
      found = extract(
        {"scale": jnp.float32(scale)},
        {"shift": jnp.float32(0)},
        batches_of(images, labels, 8),
        8,
      )
      np.testing.assert_array_equal(found.features[:8], 10 * scale)


def test_a_signature_is_a_thumbnail_as_pillow_makes_it():
  rng = np.random.default_rng(0)
  images = rng.integers(256, size=(5, 48, 48, 3), dtype=np.uint8)
  found = np.asarray(extract_lib.signature(jnp.asarray(images)), np.float64)
  for image, signature in zip(images, found, strict=True):
    gray = Image.fromarray(image.mean(-1).astype(np.float32))
    small = np.asarray(gray.resize((16, 16), Image.Resampling.BILINEAR))
    small = small.ravel() - small.mean()
    np.testing.assert_allclose(
      signature, 127 * small / np.linalg.norm(small), atol=0.6
    )


def test_signatures_ignore_brightness_and_contrast_and_flat_images_have_none():
  rng = np.random.default_rng(0)
  image = rng.integers(50, 150, size=(32, 32, 3))
  images = np.stack([image, image + 60, image // 2, np.full_like(image, 99)])
  found = np.asarray(
    extract_lib.signature(jnp.asarray(images.astype(np.uint8))), np.float64
  )
  correlations = found @ found.T / 127**2
  assert correlations[:3, :3].min() > 0.99
  np.testing.assert_array_equal(found[3], 0)
