"""One or two JAX processes: the same images, crops and augmentations."""

import numpy as np
import pytest
from PIL import Image

from tests.program import work_together

# A process of its own imports this file too, and must set up JAX first.
STEPS, BATCH_SIZE, DEVICES = 3, 8, 4


def work(process, count, port, folder, out):
  """Reads and augments some batches as process `process` of `count`."""
  import jax

  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", DEVICES // count)
  if count > 1:
    jax.distributed.initialize(f"localhost:{port}", count, process)
  from ml_collections import ConfigDict

  from odc_jax import mesh as mesh_lib
  from odc_jax.data import augment, feed, resident, sources
  from odc_jax.data.capacity import Choice
  from odc_jax.data.decode import Crop
  from odc_jax.distributed import processes

  data = ConfigDict(
    {
      "sampling": "replacement",
      "num_threads": 2,
      "num_workers": 0,
      "prefetch": 2,
    }
  )
  strengths = ConfigDict(
    {
      "flip": 0.5,
      "rotation": 10.0,
      "translate": 2,
      "jitter_p": 0.8,
      "brightness": 0.4,
      "contrast": 0.4,
      "saturation": 0.4,
      "hue": 0.1,
      "gray": 0.2,
      "blur": 0.5,
      "blur_sigma": (0.1, 2.0),
      "solarize": 0.2,
      "lighting": 0.1,
      "sobel": False,
      "mean": (0.5, 0.5, 0.5),
      "std": (0.25, 0.25, 0.25),
    }
  )
  mesh = mesh_lib.make_mesh()
  rows = mesh_lib.rows(mesh)
  source = sources.make(f"folder:{folder}")
  options = {
    "batch_size": BATCH_SIZE,
    "crops": [
      Crop(16, (0.3, 1.0), (0.75, 1.33), views=2),
      Crop(8, (0.05, 0.3), (0.75, 1.33), views=1),
    ],
    "seed": 5,
    "process_index": process,
    "process_count": count,
  }
  batches = feed.train_batches(source, data, **options)

  @jax.jit
  def augmented(step, images, index):
    key = jax.random.fold_in(jax.random.key(5), step)
    return augment.augment_views(strengths, key, images, index)

  cropped = jax.jit(resident.views)
  saved = {}
  with jax.set_mesh(mesh):
    # Reads 20 x 20 of each, then finds that they are of 40 x 30.
    images = resident.read(
      source, Choice(20, 40, ""), mesh, num_threads=2, met=lambda bad: None
    )
    kept = feed.train_batches(images, data, **options)
    for step in range(STEPS):
      batch = next(batches)
      large, small = batch["image"]
      images_, index = jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(rows, x),
        ((large, small), batch["index"]),
      )
      views = augmented(step, images_, index)
      cuts = next(kept)
      cuts = processes.to_devices((cuts["image"], cuts["index"]), mesh)
      crops = cropped(*cuts)
      for name, array in {
        "large": images_[0],
        "small": images_[1],
        "large resident": crops[0],
        "small resident": crops[1],
        "index": index,
        "large augmented": views[0],
        "small augmented": views[1],
      }.items():
        for shard in array.addressable_shards:
          row = shard.index[0].start or 0
          saved[f"{step}/{name}/{row}"] = np.asarray(shard.data)
  batches.close()
  np.savez(out, **saved)


def run_processes(count, folder, tmp_path):
  outs = [tmp_path / f"{count}_{process}.npz" for process in range(count)]
  work_together(__name__, folder, outs)
  return [dict(np.load(out)) for out in outs]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("images")
  rng = np.random.default_rng(0)
  for i in range(11):
    image = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(image).save(path / f"{i:02d}.png")
  (path / "07.png").write_text("no image")
  return path


@pytest.mark.slow
def test_two_processes_see_the_halves_of_what_one_sees(folder, tmp_path):
  (alone,) = run_processes(1, folder, tmp_path)
  first, second = run_processes(2, folder, tmp_path)
  assert len(alone) == STEPS * 7 * DEVICES
  assert not first.keys() & second.keys()
  halves = first | second
  assert halves.keys() == alone.keys()
  for name, array in alone.items():
    np.testing.assert_array_equal(halves[name], array, err_msg=name)
