"""Runs whose images lie on the devices, against those that read them."""

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from configs import odc_digits, swav_digits
from odc_jax import mesh as mesh_lib
from odc_jax.config import check
from odc_jax.data import feed, loader, resident, sources
from odc_jax.data.capacity import Choice
from odc_jax.distributed import processes
from odc_jax.methods import METHODS
from odc_jax.plan import collectives
from odc_jax.training import setup
from odc_jax.training.programs import assemble
from tests.program import (
  assert_refused,
  assert_same_run,
  kill_and_go_on,
  lines_of,
  run,
)

SHORT = [
  "--config=configs/odc_digits.py:quick",
  "--config.model.width=8",
  "--config.num_epochs=2",
  "--config.log_every=5",
  "--config.checkpoint_every_epochs=1",
  "--config.eval.every_epochs=1",
]


def compiled_step(num_examples, side):
  config = odc_digits.get_config("quick")
  config.update_from_flattened_dict(
    {"model.width": 8, "num_clusters": 48, "batch_size": 64}
  )
  mesh = mesh_lib.make_mesh(8)
  config = check.resolve(config, num_examples, mesh.size)
  with jax.set_mesh(mesh):
    parts = assemble(config, METHODS[config.method], mesh, side)
    return parts.step.lower(parts.shapes, parts.batch).compile()


def test_a_step_moves_the_batch_and_nothing_that_grows_with_the_data():
  small, large = (compiled_step(n, 40) for n in (8 * 1024, 8 * 64 * 1024))
  found = collectives.collectives(large.as_text())
  assert sorted(found) == sorted(collectives.collectives(small.as_text()))
  # To each of eight devices its eight images.
  assert ("reduce-scatter", "u8[8,40,40,3]", 8 * 40 * 40 * 3) in found
  # The images are among the arguments, and nowhere a second time.
  images = 64 * 1024 * 40 * 40 * 3
  memory = large.memory_analysis()
  assert memory.argument_size_in_bytes > images
  assert memory.temp_size_in_bytes < images / 10


# The test after this compares views of one size.
@pytest.mark.release
def test_views_of_several_sizes_give_nearly_the_same_losses(mesh):
  config = swav_digits.get_config("quick")
  config.update_from_flattened_dict(
    {"model.width": 8, "data.small_views": 2, "batch_size": 64}
  )
  digits = sources.make("digits")
  config = check.resolve(config, len(digits), mesh.size)
  program = assemble(config, METHODS["swav"], mesh)
  images = resident.read(
    digits, Choice(8, 8, ""), mesh, num_threads=2, met=lambda bad: None
  )
  losses = []
  for data in digits, images:
    state = program.init()
    batches = feed.train_batches(
      data,
      config.data,
      batch_size=64,
      crops=loader.crops(config.data),
      seed=0,
    )
    for _ in range(3):
      batch = next(batches)
      del batch["bad"], batch["seconds"]
      batch = processes.to_devices(batch, mesh)
      state, scalars, _ = program.step(state, batch)
      losses.append(float(scalars["train/loss"]))
    batches.close()
  np.testing.assert_allclose(losses[3:], losses[:3], rtol=1e-3)
  assert len(set(losses[:3])) == 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Of 32 x 32, so that a crop of the whole image is the image."""
  path = tmp_path_factory.mktemp("images")
  rng = np.random.default_rng(0)
  for i in range(300):
    (path / f"{i % 3}").mkdir(exist_ok=True)
    coarse = rng.integers(0, 128, (4, 4, 3)).astype(np.uint8)
    image = Image.fromarray(coarse + 60 * (i % 3)).resize((32, 32))
    image.save(path / f"{i % 3}" / f"{i:03d}.png")
  (path / "1" / "100.png").write_text("no image")
  return path


@pytest.mark.slow
def test_with_the_same_pixels_it_is_the_same_run(environment, folder, tmp_path):
  """Order, labels, names, bad images, the first steps, and going on.

  Not all of it bit for bit: they are two programs, in which the compiler may
  add the same numbers in another order, and a near-tie of two clusters that
  falls the other way is felt ever after.
  """
  flags = [
    *SHORT,
    f"--config.data.source=folder:{folder}",
    "--config.data.crop_scale=(1.0,1.0)",
    "--config.data.crop_ratio=(1.0,1.0)",
    "--config.num_epochs=4",
    "--config.log_every=1",
  ]
  for kind in ("off", "auto"):
    status, out, err = run(
      environment, tmp_path / kind, *flags, f"--config.data.resident={kind}"
    )
    assert status == 0, err
    assert ("data.resident = images" in out) == (kind == "auto")
  ours, theirs = (
    pq.read_table(tmp_path / kind / "clusters.parquet")
    for kind in ("auto", "off")
  )
  for name in ("index", "key", "label"):
    assert ours[name] == theirs[name]
  logs = [lines_of(tmp_path / kind) for kind in ("auto", "off")]
  assert [x["step"] for x in logs[0]] == [x["step"] for x in logs[1]]
  first = [
    next(line["train/loss"] for line in log if "train/loss" in line)
    for log in logs
  ]
  assert first[0] == pytest.approx(first[1], rel=1e-5)
  bad = [(tmp_path / k / "bad_images.txt").read_text() for k in ("auto", "off")]
  assert bad[0] == bad[1]
  assert "1/100.png" in bad[0]
  killed = tmp_path / "killed"
  kill_and_go_on(environment, killed, *flags)
  assert_same_run(killed, tmp_path / "auto")
  assert len(lines_of(killed)) > 8


def test_what_cannot_be_is_refused_before_anything_is_written(
  environment, tmp_path
):
  workdir = tmp_path / "run"
  result = run(environment, workdir, *SHORT, "--config.data.resident=yes")
  assert_refused(result, "data.resident 'yes'", "auto, images or off")
  assert not workdir.exists()


def test_a_signal_while_the_images_are_read(tmp_path, monkeypatch, capsys):
  class Stop(setup.Stop):
    def requested(self):
      self._noted = 15
      return True

  monkeypatch.setattr(setup, "Stop", Stop)
  config = odc_digits.get_config("quick")
  config.model.width = 8
  mesh = mesh_lib.make_mesh(1)
  with (
    jax.set_mesh(mesh),
    setup.contextlib.ExitStack() as stack,
    pytest.raises(SystemExit) as stopped,
  ):
    setup.open_run(config, tmp_path, None, mesh, stack)
  assert stopped.value.code == 143
  assert "stopped while the images were read" in capsys.readouterr().err
