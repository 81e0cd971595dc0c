"""The program with a frozen backbone: one pass, then heads and memories."""

import hashlib
import json
import os
import shutil
import signal
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from PIL import Image

import odc_jax
from odc_jax.interop import card, export
from tests.interop.networks import experiment, random_weights
from tests.program import (
  assert_same_run,
  finish,
  found_in,
  kill_and_go_on,
  lines_of,
  run,
  start,
  start_together,
)

NUM_IMAGES, NUM_CLUSTERS, WIDTH = 150, 6, 64  # of the features

SHORT = [
  "--config=configs/odc_folder.py",
  f"--config.num_clusters={NUM_CLUSTERS}",
  "--config.num_epochs=6",
  "--config.batch_size=32",
  "--config.eval.batch_size=16",
  "--config.eval.every_epochs=3",
  "--config.checkpoint_every_epochs=1",
  "--config.log_every=2",
]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  """Three classes, told by their colours; one of them cannot be read."""
  path = tmp_path_factory.mktemp("images")
  rng = np.random.default_rng(0)
  for i in range(NUM_IMAGES):
    coarse = rng.integers(0, 160, (5, 5, 3)).astype(np.uint8)
    coarse[..., i % 3] += 90
    (path / "abc"[i % 3]).mkdir(exist_ok=True)
    image = Image.fromarray(coarse).resize((40, 48))
    image.save(path / "abc"[i % 3] / f"{i:03d}.png")
  (path / "b" / "100.png").write_text("no image")
  return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  """A network as an export holds it, which says what images it wants."""
  folder = tmp_path_factory.mktemp("weights")
  config = experiment(name="resnet18", stem="imagenet", width=8)
  config.data.image_size, config.data.eval_resize = 32, 36
  arrays = export.state_dict(*random_weights(config), 0)
  export.write_files(folder, arrays, card.describe(config), "a network\n")
  return folder


@pytest.fixture(scope="module")
def flags(images, weights):
  return [
    *SHORT,
    f"--config.data.source=folder:{images}",
    f"--config.model.weights={weights}",
  ]


@pytest.fixture(scope="module")
def finished(environment, flags, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("frozen") / "first"
  status, out, err = run(environment, workdir, *flags)
  assert status == 0, err
  (workdir / "out.txt").write_text(out)
  return workdir


def kept(workdir):
  """Returns the folder of the features beside a run."""
  (folder,) = (workdir.parent / "features").iterdir()
  return folder


def test_the_backbone_stays_and_its_features_are_kept(
  environment, finished, images, weights, tmp_path
):
  features = np.load(kept(finished) / "features.npy")
  assert features.shape == (NUM_IMAGES, WIDTH)
  assert np.isfinite(features).all()
  assert (
    "1 of 150 images of the train set could not be read"
    in (finished / "out.txt").read_text()
  )
  table = pq.read_table(finished / "clusters.parquet").to_pydict()
  assert len(table["key"]) == NUM_IMAGES - 1
  assert set(table["label"]) == {0, 1, 2}
  assert (set(table["width"]), set(table["height"])) == ({40}, {48})
  assert all(0 < value < 1 for value in table["brightness"])
  path = images / table["key"][0]
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  assert table["sha256"][0] == digest
  schema = pq.read_schema(finished / "clusters.parquet")
  assert schema.metadata[b"odc_jax.folder"] == bytes(images)
  losses = [x["train/loss"] for x in lines_of(finished) if "train/loss" in x]
  assert np.mean(losses[-3:]) < losses[0]
  # That the clusters of fixed features settle early is no sign of collapse.
  assert not (finished / "warnings.jsonl").exists()

  status, _, err = run(
    environment, finished, "--mode=export", f"--output={tmp_path / 'out'}"
  )
  assert status == 0, err
  ours, theirs = (
    safetensors.numpy.load_file(folder / "model.safetensors")
    for folder in (tmp_path / "out", weights)
  )
  assert ours.keys() == theirs.keys()
  for name, array in theirs.items():
    if not name.endswith("num_batches_tracked"):
      np.testing.assert_array_equal(ours[name], array, err_msg=name)


def test_in_use_it_finds_the_features_of_its_images(finished, images):
  loaded = odc_jax.load(finished)
  table = loaded.clusters().to_pydict()
  some = [0, 1, 2, NUM_IMAGES - 2]
  paths = [images / table["key"][i] for i in some]
  found = loaded.features(paths)
  expected = np.load(kept(finished) / "features.npy")
  rows = [table["index"][i] for i in some]
  np.testing.assert_allclose(found, expected[rows], rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(
    np.linalg.norm(loaded.embed(paths), axis=1), 1, atol=1e-5
  )
  with pytest.warns(UserWarning, match=r"b/100\.png"):
    assigned = loaded.assign(images).to_pydict()
  same = np.equal(assigned["cluster"], table["cluster"])
  assert same.mean() > 0.9  # a memory may lag behind


def test_new_images_are_assigned(environment, finished, images, tmp_path):
  new = tmp_path / "new"
  shutil.copytree(images / "a", new)
  output = tmp_path / "assigned.parquet"
  status, _, err = run(
    environment,
    finished,
    "--mode=assign",
    f"--images={new}",
    f"--output={output}",
  )
  assert status == 0, err
  table = pq.read_table(output).to_pydict()
  assert len(table["cluster"]) == NUM_IMAGES // 3
  assert set(table["cluster"]) <= set(range(NUM_CLUSTERS))
  # Each is most like itself.
  assert all(
    f"a/{key}" in nearest
    for key, nearest in zip(table["key"], table["nearest"], strict=True)
  )


def test_it_is_evaluated_and_reported_again(environment, finished, tmp_path):
  workdir = tmp_path / "frozen" / "copy"
  shutil.copytree(finished, workdir)
  before = json.loads((workdir / "summary.json").read_text())
  status, _, err = run(
    environment, workdir, "--mode=evaluate", "--evals=knn,clustering"
  )
  assert status == 0, err
  found = found_in(workdir)
  # By images now, by what was kept of them then.
  for name in "eval/knn_top1", "eval/nmi_labels", "eval/purity_labels":
    assert found[name] == pytest.approx(before[name], abs=0.02), name
  assert not (workdir.parent / "features").exists()

  (workdir / "report.html").unlink()
  status, _, err = run(environment, workdir, "--mode=report")
  assert status == 0, err
  assert "report.html" in {path.name for path in workdir.iterdir()}


def test_the_next_experiment_finds_the_features(environment, finished, flags):
  files = [kept(finished) / f"{name}.npy" for name in ("features", "labels")]
  files.append(kept(finished) / "done.json")
  files += (finished.parent / "facts").iterdir()
  assert len(files) == 4
  before = [(file.stat().st_mtime_ns, file.read_bytes()) for file in files]
  workdir = finished.parent / "second"
  status, _, err = run(
    environment,
    workdir,
    *flags,
    "--config.seed=1",
    "--config.num_epochs=1",
    "--config.num_clusters=4",
    "--config.eval.batch_size=32",
  )
  assert status == 0, err
  # The only ones still, and nobody wrote to them.
  assert [(f.stat().st_mtime_ns, f.read_bytes()) for f in files] == before
  columns = ["key", "width", "sharpness", "sha256"]
  ours, theirs = (
    pq.read_table(run / "clusters.parquet", columns=columns)
    for run in (workdir, finished)
  )
  assert ours == theirs
  assert len(os.listdir(finished.parent / "facts")) == 1
  kept(finished)
  bad = [(finished.parent / run_ / "bad_images.txt") for run_ in
         ("first", "second")]  # fmt: skip
  assert bad[0].read_text() == bad[1].read_text()


def interrupt(environment, workdir, flags, number):
  """Sends a signal in the middle of the pass; returns the exit status."""
  process = start(environment, workdir, *flags)
  folder = workdir.parent / "features"
  while not list(folder.glob("*/features.npy")):
    assert process.poll() is None, process.communicate()[1]
    time.sleep(0.001)
  process.send_signal(number)
  _, err = process.communicate(timeout=300)
  assert "Traceback" not in err, err
  assert not (workdir / "metrics.jsonl").exists()
  return process.returncode


@pytest.mark.slow
def test_killed_in_the_pass_and_in_training_it_is_the_same_run(
  environment, finished, flags, tmp_path
):
  # Smaller batches, so that the signals come in the middle.
  flags = [*flags, "--config.eval.batch_size=2"]
  undisturbed, killed = tmp_path / "one" / "run", tmp_path / "two" / "run"
  status, _, err = run(environment, undisturbed, *flags)
  assert status == 0, err
  assert interrupt(environment, killed, flags, signal.SIGKILL) == -9
  assert not list(killed.parent.glob("features/*/done.json"))
  shutil.rmtree(killed.parent)
  assert interrupt(environment, killed, flags, signal.SIGTERM) == 143
  (note,) = killed.parent.glob("features/*/done.json")
  assert 0 < json.loads(note.read_text())["rows"] < NUM_IMAGES
  kill_and_go_on(environment, killed, *flags)
  assert_same_run(killed, undisturbed)
  for name in ("features", "signatures", "labels"):
    np.testing.assert_array_equal(
      *(np.load(kept(w) / f"{name}.npy") for w in (killed, undisturbed))
    )


@pytest.mark.slow
def test_killed_while_it_grows_it_is_the_same_run(
  environment, finished, images, flags, tmp_path
):
  larger = tmp_path / "larger"
  shutil.copytree(images, larger)
  for i in range(20):
    image = Image.new("RGB", (40, 40), (12 * i, 255 - 12 * i, 99))
    image.save(larger / "abc"[i % 3] / f"{i:03d} new.png")
  (larger / "a" / "003.png").unlink()
  flags = [
    *flags,
    f"--config.data.source=folder:{larger}",
    "--config.eval.batch_size=4",
    "--on_change=extend",
  ]
  for name in ("undisturbed", "killed"):
    shutil.copytree(finished, tmp_path / name / "run")
    shutil.copytree(finished.parent / "features", tmp_path / name / "features")
  undisturbed, killed = (
    tmp_path / name / "run" for name in ("undisturbed", "killed")
  )
  status, out, err = run(environment, undisturbed, *flags)
  assert status == 0, err
  assert "from 150 to 170 images, 1 of which are no longer there" in out
  features = killed.parent / "features"
  there = {*features.iterdir()}
  for moment in (
    lambda: {*features.glob("*/done.json")} - {
      path / "done.json" for path in there
    },
    (killed / ".replacing-unfinished").exists,
    (killed / "growth.json").exists,
  ):  # fmt: skip
    process = start(environment, killed, *flags)
    while not moment():
      assert process.poll() is None, process.communicate()[1]
      time.sleep(0.0005)
    process.kill()
    process.communicate(timeout=300)
    # All of the old, or all of the new.
    if not (killed / ".replacing").exists():
      config = json.loads((killed / "config.json").read_text())
      listed = (killed / "images.txt").read_text().splitlines()
      grown = (killed / "growth.json").exists()
      assert len(listed) == config["num_examples"] == (170 if grown else 150)
  status, _, err = run(environment, killed, *flags)
  assert status == 0, err
  assert_same_run(killed, undisturbed)
  name = json.loads((killed / "frozen.json").read_text())
  assert name == json.loads((undisturbed / "frozen.json").read_text())
  for file in ("features", "signatures", "labels"):
    path = f"features/{name['folder']}/{file}.npy"
    ours, theirs = (np.load(w.parent / path) for w in (killed, undisturbed))
    np.testing.assert_array_equal(ours, theirs)
  # ceil(6 epochs * 20 new / 170) behind the six, of 170 // 32 steps each.
  grown = json.loads((killed / "growth.json").read_text())
  assert (grown["sizes"], grown["epochs"]) == ([150, 170], [1])
  assert lines_of(killed)[-1]["step"] == (6 + 1) * 5

  # Without training no image that was there changes its cluster.
  before = pq.read_table(killed / "clusters.parquet").to_pydict()
  shutil.copy(larger / "b" / "001.png", larger / "b" / "one more.png")
  status, _, err = run(environment, killed, *flags, "--config.num_epochs=0")
  assert status == 0, err
  after = pq.read_table(killed / "clusters.parquet").to_pydict()
  assert after["key"] == [*before["key"], "b/one more.png"]
  assert after["cluster"][:-1] == before["cluster"]
  assert (
    after["cluster"][-1] == before["cluster"][after["key"].index("b/001.png")]
  )
  assert lines_of(killed)[-1]["step"] == (6 + 1) * 5


# passes/frozen_test.py compares the passes of two and one.
@pytest.mark.release
def test_two_processes_run_what_one_runs(
  environment, finished, flags, tmp_path
):
  workdir = tmp_path / "run"
  results = finish(start_together(environment, workdir, 2, 2, *flags))
  for status, _, err in results:
    assert status == 0, err
  found, expected = (
    np.load(kept(w) / "features.npy") for w in (workdir, finished)
  )
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
  ours, theirs = lines_of(workdir), lines_of(finished)
  assert [x["step"] for x in ours] == [x["step"] for x in theirs]
  first = [
    next(x["train/loss"] for x in lines if "train/loss" in x)
    for lines in (ours, theirs)
  ]
  assert first[0] == pytest.approx(first[1], rel=1e-4)
  ours, theirs = (
    pq.read_table(w / "clusters.parquet") for w in (workdir, finished)
  )
  for name in ("index", "key", "label"):
    assert ours[name] == theirs[name]
  bad = [(w / "bad_images.txt").read_text() for w in (workdir, finished)]
  assert bad[0] == bad[1]
