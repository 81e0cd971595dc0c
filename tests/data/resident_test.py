"""Images on the devices: what the loader gives, without its pixels' way."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from PIL import Image

from odc_jax import mesh as mesh_lib
from odc_jax.data import decode, feed, resident, sources
from odc_jax.data.bad_images import BadImage
from odc_jax.data.capacity import Choice
from odc_jax.data.decode import Crop
from odc_jax.data.resident import Cuts
from odc_jax.distributed import processes
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


def make_config(sampling):
  return ml_collections.ConfigDict(
    {
      "sampling": sampling,
      "num_threads": 0,
      "num_workers": 0,
      "prefetch": 1,
    }
  )


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
  wide = Crop(16, (1.0, 1.0), (12 / 33, 12 / 33))
  batches = feed.train_batches(
    images,
    make_config("permutation"),
    batch_size=8,
    crops=[wide],
    seed=0,
    order=np.full(8, ODD),
  )
  cuts = next(batches)["image"]
  assert cuts.sizes.tolist() == [[7, 20]] * 8
  np.testing.assert_allclose(cuts.boxes[0][:, 0], [[0, 0, 7, 20]] * 8)


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


views = jax.jit(resident.views)


def lowered(mesh, num_rows):
  rows = mesh_lib.rows(mesh)

  def shape(*sizes, dtype):
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=rows)

  cuts = Cuts(
    pixels=shape(num_rows, 24, 24, 3, dtype=jnp.uint8),
    sizes=shape(16, 2, dtype=jnp.int32),
    boxes=(
      shape(16, 2, 4, dtype=jnp.float32),
      shape(16, 1, 4, dtype=jnp.float32),
    ),
    sides=(16, 8),
  )
  return views.lower(cuts, shape(16, dtype=jnp.int32)).compile()


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


def assert_nearly_same(ours, theirs):
  difference = np.abs(np.asarray(ours).astype(int) - theirs)
  assert difference.max() <= 2
  assert np.mean(difference > 0) < 0.1


@pytest.mark.parametrize(
  ("sampling", "interpolation"),
  [("permutation", "bilinear"), ("replacement", "bicubic")],
)
def test_batches_are_the_loaders(source, mesh, sampling, interpolation):
  """The order, the boxes, and the crops but for a level of 255."""
  images, _ = read(source, mesh)
  options = {
    "batch_size": 24,
    "crops": [x._replace(interpolation=interpolation) for x in CROPS],
    "seed": 5 + (1 << 32),
    "start_step": 1,
  }
  config = make_config(sampling)
  from_devices = feed.train_batches(images, config, **options)
  from_host = feed.train_batches(source, config, **options)
  for _ in range(4):
    ours, theirs = next(from_devices), next(from_host)
    assert ours.keys() == theirs.keys()
    assert ours["bad"] == []
    assert ours["seconds"] >= 0
    assert ours["index"].dtype == np.int32
    np.testing.assert_array_equal(ours["index"], theirs["index"])
    on_devices = processes.to_devices((ours["image"], ours["index"]), mesh)
    for crops, expected in zip(
      views(*on_devices), theirs["image"], strict=True
    ):
      assert crops.dtype == np.uint8
      assert_nearly_same(crops, expected)
  from_host.close()


def test_processes_hold_consecutive_rows_of_the_same_batch(source):
  with jax.set_mesh(mesh := mesh_lib.make_mesh(1)):
    images, _ = read(source, mesh)

  def batch(**options):
    batches = feed.train_batches(
      images,
      make_config("permutation"),
      batch_size=24,
      crops=CROPS,
      seed=1,
      start_step=2,
      **options,
    )
    found = next(batches)
    return found["index"], found["image"].sizes, found["image"].boxes

  whole = batch()
  halves = [batch(process_index=p, process_count=2) for p in range(2)]
  joined = jax.tree.map(lambda *parts: np.concatenate(parts), *halves)
  jax.tree.map(np.testing.assert_array_equal, joined, whole)


@pytest.mark.parametrize("interpolation", decode.INTERPOLATIONS)
def test_evaluation_has_the_loaders_crops_labels_and_keys(
  source, mesh, interpolation
):
  images, _ = read(source, mesh)
  options = {
    "batch_size": 24,
    "resize": 20,
    "crop": 16,
    "interpolation": interpolation,
    "num_threads": 0,
  }
  theirs = list(feed.eval_batches(source, **options))
  ours = list(feed.eval_batches(images, **options))
  for batch, expected in zip(ours, theirs, strict=True):
    assert batch.keys() == expected.keys()
    np.testing.assert_array_equal(batch["index"], expected["index"])
    np.testing.assert_array_equal(batch["label"], expected["label"])
    assert batch["key"] == expected["key"]
    assert batch["bad"] == []
    on_devices = processes.to_devices((batch["image"], batch["index"]), mesh)
    (got,) = views(*on_devices)
    real = batch["index"] < N
    assert_nearly_same(got[real, 0], expected["image"][real])


def test_each_process_evaluates_the_rows_of_its_devices():
  digits = sources.make("digits")
  with jax.set_mesh(mesh := mesh_lib.make_mesh(1)):
    images, _ = read(digits, mesh, side=8)
  seen = []
  for process in range(2):
    # As it would have read them: of 2,048 rows its 1,024.
    own = slice(process * 1024, (process + 1) * 1024)
    batches = list(
      feed.eval_batches(
        images._replace(labels=images.labels[own], keys=images.keys[own]),
        batch_size=600,
        resize=8,
        crop=8,
        num_threads=0,
        process_index=process,
        process_count=2,
      )
    )
    assert len(batches) == 4  # else they would wait for each other
    for batch in batches:
      found = batch["index"].tolist(), batch["key"], batch["label"].tolist()
      seen += [row for row in zip(*found, strict=True) if row[0] < 1797]
  assert seen == [
    (i, digits[i]["key"], digits[i]["label"]) for i in range(1797)
  ]
