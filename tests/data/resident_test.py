"""Images on the devices: what the loader gives, without its pixels' way."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from PIL import Image

from odc_jax import mesh as mesh_lib
from odc_jax.data import decode, loader, resident, sources
from odc_jax.data.bad_images import BadImage
from odc_jax.data.capacity import Choice
from odc_jax.data.decode import Crop
from odc_jax.plan import collectives

N, ODD = 75, 40
CROPS = [
  Crop(16, (0.2, 1.0), (3 / 4, 4 / 3), views=2),
  Crop(8, (0.05, 0.3), (3 / 4, 4 / 3), views=1),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """Photographs of many sizes in two classes; number 7 cannot be read."""
  path = tmp_path_factory.mktemp("images")
  rng = np.random.default_rng(0)
  for i in range(N):
    coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    size = (12 + i % 20, 33) if i == ODD else (12 + i % 20, 24 - i % 11)
    folder = path / f"{i // 40}"
    folder.mkdir(exist_ok=True)
    image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
    image.save(folder / f"{i:02d}.png")
  (path / "0" / "07.png").write_text("no image")
  return sources.make(f"folder:{path}")


def read(source, mesh, most=64, side=20):
  met = []
  images = resident.read(
    source,
    Choice(side, most, ""),
    mesh,
    num_threads=2,
    met=met.extend,
  )
  return images, met


def test_every_row_is_its_image(source, mesh):
  images, met = read(source, mesh)
  # It grew to the longest side, of number 40.
  assert images.pixels.shape == (1024, 33, 33, 3)
  assert images.pixels.sharding == mesh_lib.rows(mesh)
  assert images.smaller == 0
  pixels = np.asarray(images.pixels)
  for i in range(N):
    image = decode.decode(source[8 if i == 7 else i]["image"])
    width, height = images.sizes[i]
    assert image.size == (width, height)
    np.testing.assert_array_equal(pixels[i, :height, :width], image)
    assert not pixels[i, height:].any()
    assert not pixels[i, :, width:].any()
  assert not pixels[N:].any()
  assert met == [BadImage(7, "0/07.png", "not an image in any known format")]
  expected = [-1 if i == 7 else i // 40 for i in range(N)]
  assert images.labels.tolist() == expected
  assert images.keys == list(source.keys)


def test_what_is_too_long_is_made_smaller(source, mesh):
  images, _ = read(source, mesh, most=20)
  assert images.pixels.shape == (1024, 20, 20, 3)
  sizes = [
    decode.upright_size(source[8 if i == 7 else i]["image"]) for i in range(N)
  ]
  np.testing.assert_array_equal(images.sizes, sizes)
  assert images.smaller == sum(max(size) > 20 for size in sizes) > 10
  # 12 x 33 becomes 7 x 20: as Pillow would make it.
  assert images.sizes[ODD].tolist() == [12, 33]
  image = decode.decode(source[ODD]["image"])
  smaller = image.resize((7, 20), Image.Resampling.BILINEAR)
  pixels = np.asarray(images.pixels)[ODD]
  np.testing.assert_array_equal(pixels[:, :7], smaller)
  assert not pixels[:, 7:].any()
  # A box reaches as far into the smaller image as into the image.
  order = np.full(8, ODD)
  options = {"sampling": "", "batch_size": 8, "seed": 0, "order": order}
  wide = [Crop(16, (1.0, 1.0), (12 / 33, 12 / 33))]
  batch = next(resident.train_batches(images, crops=wide, **options))
  assert batch["sizes"].tolist() == [[7, 20]] * 8
  np.testing.assert_allclose(batch["boxes"][0][:, 0], [[0, 0, 7, 20]] * 8)


@pytest.mark.parametrize("shape", [(5, 4, 3), (7,)])
def test_rows_of_features_and_images_alike(shape, mesh):
  """Duplicates, every row, and beyond the last one."""
  rng = np.random.default_rng(0)
  for dtype in (np.float32, np.uint8):
    rows = rng.integers(0, 256, (1500, *shape)).astype(dtype)
    index = np.concatenate([rng.integers(0, 1500, 1595), [7] * 3, [2048, 2100]])
    on_devices = resident.place(rows, mesh)
    assert on_devices.shape == (2048, *shape)
    assert on_devices.sharding == mesh_lib.rows(mesh)
    index = jax.device_put(index.astype(np.int32), mesh_lib.rows(mesh))
    got = jax.jit(resident.take)(on_devices, index)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got[:-2], rows[index[:-2]])
    np.testing.assert_array_equal(got[-2:], 0)


def lowered(mesh, num_rows):
  rows = mesh_lib.rows(mesh)

  def shape(*sizes, dtype):
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=rows)

  batch = {
    "index": shape(16, dtype=jnp.int32),
    "sizes": shape(16, 2, dtype=jnp.int32),
    "boxes": (
      shape(16, 2, 4, dtype=jnp.float32),
      shape(16, 1, 4, dtype=jnp.float32),
    ),
  }

  def views(pixels, batch):
    return resident.views(pixels, batch, [16, 8])

  pixels = shape(num_rows, 24, 24, 3, dtype=jnp.uint8)
  return jax.jit(views).lower(pixels, batch).compile()


def test_the_batch_moves_and_nothing_that_grows_with_the_data_set():
  mesh = mesh_lib.make_mesh(8)
  with jax.set_mesh(mesh):
    few, many = lowered(mesh, 1024), lowered(mesh, 64 * 1024)
  found = collectives.collectives(many.as_text())
  assert found == collectives.collectives(few.as_text())
  # The index, and to each device the two images that it asked for.
  assert sorted(found) == [
    ("all-gather", "s32[16]", 64),
    ("reduce-scatter", "u8[2,24,24,3]", 2 * 24 * 24 * 3),
  ]
  temporaries = [c.memory_analysis().temp_size_in_bytes for c in (few, many)]
  assert temporaries[0] == temporaries[1]


def from_loader(source, count, **options):
  config = ml_collections.ConfigDict(
    {
      "sampling": options.pop("sampling"),
      "num_threads": 0,
      "num_workers": 0,
      "prefetch": 1,
    }
  )
  batches = loader.train_batches(source, config, crops=CROPS, **options)
  taken = [next(batches) for _ in range(count)]
  batches.close()
  return taken


def assert_nearly_same(ours, theirs):
  difference = np.abs(np.asarray(ours).astype(int) - theirs)
  assert difference.max() <= 2
  assert np.mean(difference > 0) < 0.1


@pytest.mark.parametrize("sampling", ["permutation", "replacement"])
def test_batches_are_the_loaders(source, mesh, sampling):
  """The order, the boxes, and the crops but for a level of 255."""
  images, _ = read(source, mesh)
  views = jax.jit(lambda pixels, b: resident.views(pixels, b, [16, 8]))
  options = {
    "sampling": sampling,
    "batch_size": 24,
    "seed": 5 + (1 << 32),
    "start_step": 1,
  }
  batches = resident.train_batches(images, crops=CROPS, **options)
  for theirs in from_loader(source, 4, **options):
    ours = next(batches)
    assert ours["bad"] == []
    assert ours["seconds"] >= 0
    assert ours["index"].dtype == np.int32
    np.testing.assert_array_equal(ours["index"], theirs["index"])
    arrays = {name: ours[name] for name in ("index", "sizes", "boxes")}
    arrays = jax.device_put(arrays, mesh_lib.rows(mesh))
    got = views(images.pixels, arrays)
    for crops, expected in zip(got, theirs["image"], strict=True):
      assert crops.dtype == np.uint8
      assert_nearly_same(crops, expected)


def test_processes_hold_consecutive_rows_of_the_same_batch(source):
  with jax.set_mesh(mesh := mesh_lib.make_mesh(1)):
    images, _ = read(source, mesh)
  options = {
    "sampling": "permutation",
    "batch_size": 24,
    "crops": CROPS,
    "seed": 1,
  }
  whole = next(resident.train_batches(images, start_step=2, **options))
  halves = [
    next(
      resident.train_batches(
        images, start_step=2, process_index=p, process_count=2, **options
      )
    )
    for p in range(2)
  ]
  for batch in (whole, *halves):
    del batch["bad"], batch["seconds"]
  joined = jax.tree.map(lambda *parts: np.concatenate(parts), *halves)
  jax.tree.map(np.testing.assert_array_equal, joined, whole)


def test_evaluation_has_the_loaders_crops_labels_and_keys(source, mesh):
  images, _ = read(source, mesh)
  options = {"batch_size": 24, "resize": 20, "crop": 16}
  theirs = list(loader.eval_batches(source, num_threads=0, **options))
  ours = list(resident.eval_batches(images, **options))
  views = jax.jit(lambda pixels, b: resident.views(pixels, b, [16]))
  for batch, expected in zip(ours, theirs, strict=True):
    np.testing.assert_array_equal(batch["index"], expected["index"])
    np.testing.assert_array_equal(batch["label"], expected["label"])
    assert batch["key"] == expected["key"]
    assert batch["bad"] == []
    arrays = {name: batch[name] for name in ("index", "sizes", "boxes")}
    arrays = jax.device_put(arrays, mesh_lib.rows(mesh))
    (got,) = views(images.pixels, arrays)
    real = batch["index"] < N
    assert_nearly_same(got[real, 0], expected["image"][real])


def test_each_process_evaluates_the_rows_of_its_devices():
  digits = sources.make("digits")
  with jax.set_mesh(mesh := mesh_lib.make_mesh(1)):
    images, _ = read(digits, mesh, side=8)
  # As two processes would have read them: 2,048 rows are 1,024 and 1,024.
  own = [
    images._replace(
      labels=images.labels[first : first + 1024],
      keys=images.keys[first : first + 1024],
      first=first,
    )
    for first in (0, 1024)
  ]
  parts = [
    list(
      resident.eval_batches(
        part, batch_size=600, resize=8, crop=8, process_count=2
      )
    )
    for part in own
  ]
  # Else they would wait for each other.
  assert [len(part) for part in parts] == [4, 4]
  seen = [
    found
    for part in parts
    for batch in part
    for found in zip(
      batch["index"].tolist(), batch["key"], batch["label"].tolist(),
      strict=True,
    )
    if found[0] < 1797
  ]  # fmt: skip
  assert seen == [(i, d["key"], d["label"]) for i, d in enumerate(digits)]
