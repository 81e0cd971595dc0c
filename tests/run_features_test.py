"""The program on features from elsewhere: no network, perhaps no pictures."""

import importlib
import json
import warnings

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import odc_jax
from odc_jax import mesh as mesh_lib
from odc_jax.config import auto, check, options
from odc_jax.errors import UserError
from odc_jax.interop import describe
from odc_jax.methods import METHODS
from odc_jax.training.programs import assemble
from tests.program import (
  evaluations_in,
  finish,
  found_in,
  lines_of,
  run,
  run_here,
  start_together,
)

# ml_collections loads a config by a method that Python deprecates.
pytestmark = pytest.mark.filterwarnings(
  "ignore:the load_module:DeprecationWarning"
)

NUM_IMAGES, WIDTH = 96, 12

SHORT = [
  "--config=configs/odc_folder.py",
  "--config.num_clusters=4",
  "--config.num_epochs=3",
  "--config.batch_size=32",
  "--config.eval.every_epochs=3",
  "--config.checkpoint_every_epochs=1",
  "--config.log_every=1",
]


def blobs(seed, n=NUM_IMAGES):
  """Three groups that stand apart, one after the other."""
  rng = np.random.default_rng(seed)
  centers = 4 * np.eye(3, WIDTH)
  return rng.normal(centers[np.arange(n) * 3 // n], 0.5).astype(np.float32)


everything = mesh_lib.make_mesh


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  """As most users have: eight take long to compile for."""
  monkeypatch.setattr(mesh_lib, "make_mesh", lambda **_: everything(1))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """A file of features, a folder of their pictures, new features."""
  path = tmp_path_factory.mktemp("data")
  np.save(path / "old.npy", blobs(0).astype(np.float16))
  np.save(path / "new.npy", blobs(1, 30))
  rng = np.random.default_rng(2)
  for i in range(NUM_IMAGES):
    folder = path / "pictures" / "abc"[i * 3 // NUM_IMAGES]
    folder.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / f"{i:03d}.png")
  return path


def flags(data, *others):
  return [
    *SHORT,
    f"--config.data.source=features:{data / 'old.npy'}",
    f"--config.data.images=folder:{data / 'pictures'}",
    *others,
  ]


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("features") / "run"
  with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
    warnings.filterwarnings("ignore", "the load_module")
    patch.setattr(mesh_lib, "make_mesh", lambda **_: everything(1))
    run_here(patch, f"--workdir={workdir}", *flags(data))
  return workdir


def test_it_trains_on_the_rows_and_shows_the_pictures(finished, data):
  config = json.loads((finished / "config.json").read_text())
  assert config["model"]["embedding_dim"] == WIDTH
  assert config["model"]["weights"] == ""
  summary = json.loads((finished / "summary.json").read_text())
  assert summary["eval/knn_top1"] == 1
  assert summary["eval/purity_labels"] == 1
  assert "random weights" not in summary["verdict"]
  assert "verdict/ami_colors" in summary
  table = pq.read_table(finished / "clusters.parquet").to_pydict()
  assert table["key"][0] == "a/000.png"
  assert set(table["near_duplicate_group"]) == {None}
  page = (finished / "report.html").read_text()
  assert page.count('"UklGR') == NUM_IMAGES  # WebP
  assert f"none: {WIDTH} given features of an image" in page
  assert "width 64" not in page
  assert not (finished.parent / "features").exists()


def test_in_use_it_takes_features(finished, data, monkeypatch, capsys):
  loaded = odc_jax.load(finished)
  new = np.load(data / "new.npy")
  np.testing.assert_array_equal(loaded.features(new), new)
  unit = new / np.linalg.norm(new, axis=1, keepdims=True)
  np.testing.assert_allclose(loaded.embed(new), unit, atol=1e-6)
  centroids = np.load(finished / "centroids.npy")
  output = finished.parent / "assigned.parquet"
  run_here(
    monkeypatch,
    f"--workdir={finished}",
    "--mode=assign",
    f"--images={data / 'new.npy'}",
    f"--output={output}",
  )
  assigned = pq.read_table(output).to_pydict()
  assert assigned["key"] == [str(i) for i in range(30)]
  cosines = unit @ (centroids.T / np.linalg.norm(centroids, axis=1))
  np.testing.assert_array_equal(assigned["cluster"], cosines.argmax(axis=1))
  # In three groups of ten, as the old ones are in three folders.
  assert [{key[0] for key in keys} for keys in assigned["nearest"]] == [
    {"abc"[i // 10]} for i in range(30)
  ]
  for images, says in [
    (new[:, :5], "5 features .* trained on 12"),
    ([data / "pictures" / "a" / "000.png"], "knows features, no images"),
    (data / "pictures", "has no split"),
    (data / "gone.npy", "there is no file"),
  ]:
    with pytest.raises(UserError, match=says):
      loaded.assign(images)


def test_it_is_evaluated_reported_and_goes_on(
  finished, data, monkeypatch, tmp_path
):
  before = json.loads((finished / "summary.json").read_text())
  run_here(
    monkeypatch,
    f"--workdir={finished}",
    "--mode=evaluate",
    "--evals=knn,assignment,linear",
  )
  assert all(evaluation["of_run"] for evaluation in evaluations_in(finished))
  scores = found_in(finished)
  assert scores["eval/knn_top1"] == before["eval/knn_top1"]
  assert scores["eval/linear_top1_lbfgs"] == 1
  assert scores["eval/train_nmi_assigned"] > 0.8
  (finished / "report.html").unlink()
  run_here(monkeypatch, f"--workdir={finished}", "--mode=report")
  assert '"UklGR' in (finished / "report.html").read_text()

  with pytest.raises(UserError, match="no network to export"):
    run_here(monkeypatch, f"--workdir={finished}", "--mode=export")

  # The same command goes on, where features and folder now lie elsewhere too.
  moved = tmp_path / "moved.npy"
  moved.write_bytes((data / "old.npy").read_bytes())
  again = flags(data, f"--config.data.source=features:{moved}")
  run_here(monkeypatch, f"--workdir={finished}", *again)
  np.save(moved, blobs(3).astype(np.float16))
  with pytest.raises(UserError, match="not those that this run began with"):
    run_here(monkeypatch, f"--workdir={finished}", *again)
  with pytest.raises(UserError, match=r"moved\.npy has changed since"):
    run_here(monkeypatch, f"--workdir={finished}", "--mode=evaluate")


@pytest.mark.slow
def test_voting_heads_learn_without_pictures(
  data, tmp_path, monkeypatch, capsys
):
  run_here(
    monkeypatch,
    f"--workdir={tmp_path / 'run'}",
    "--config=configs/temi_digits.py:quick",
    f"--config.data.source=features:{data / 'old.npy'}",
    "--config.num_clusters=3",
    "--config.batch_size=32",
    "--config.temi.num_heads=4",
  )
  workdir = tmp_path / "run"
  table = pq.read_table(workdir / "clusters.parquet").to_pydict()
  assert table["key"][:2] == ["0", "1"]
  assert "label" not in table
  losses = [x["train/loss"] for x in lines_of(workdir) if "train/loss" in x]
  assert np.isfinite(losses).all()
  summary = json.loads((workdir / "summary.json").read_text())
  assert "verdict/ami_colors" not in summary
  assert "verdict/silhouette" in summary
  assert '"UklGR' not in (workdir / "report.html").read_text()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_features(name, data):
  """Traced, not compiled: a step gathers rows, and nothing sees an image."""
  config = importlib.import_module(f"configs.{name}_digits").get_config()
  config.data.source = f"features:{data / 'old.npy'}"
  with config.unlocked():
    config.model.train = "head"
  config.update(batch_size=32, num_clusters=8)
  # What else would be too many for so few images.
  small = {
    "extra_clusters": (),
    "carp.block_size": 4,
    "local_aggregation.num_background": NUM_IMAGES,
  }
  there = options.flat(config)
  config.update_from_flattened_dict(
    {key: value for key, value in small.items() if key in there}
  )
  mesh = mesh_lib.make_mesh()
  method = METHODS[name]
  config, lines = describe.fill(config)
  assert f"{WIDTH} features of every image" in lines[0]
  config, _ = auto.fill(config, NUM_IMAGES, 1, method.AUTO)
  config = check.resolve(config, NUM_IMAGES, 1)
  with jax.set_mesh(mesh):
    program = assemble(config, method, mesh)
    state, scalars, _ = jax.eval_shape(
      program.step, program.shapes, program.batch
    )
  assert "backbone" not in state.params
  assert program.batch["image"].features.shape[1] == WIDTH
  assert "train/loss" in scalars


def test_mistakes_are_told_in_one_line(data, tmp_path, monkeypatch):
  workdir = tmp_path / "run"
  for other, says in [
    ("model.train=all", "no images to train a network on"),
    ("model.weights=net.pth", "does nothing with data.source"),
    ("eval.evaluators=('svm',)", "svm: needs images"),
    ("data.source=folder:x", "data.images.* does nothing"),
    ("data.source=features:x.npy", "there is no file x.npy"),
  ]:
    command = flags(data, f"--config.{other}")
    with pytest.raises(UserError, match=says) as error:
      run_here(monkeypatch, f"--workdir={workdir}", *command)
    assert "\n" not in str(error.value)
  assert not workdir.exists()


@pytest.mark.slow
def test_a_plan_has_no_pass(data, monkeypatch, capsys):
  run_here(monkeypatch, "--mode=plan", *flags(data))
  plan = json.loads(capsys.readouterr().out.splitlines()[-1])
  assert [*plan["programs"]] == ["embeddings", "step", "clustering"]
  assert plan["disk"] == {}
  assert plan["parts"]["features of all images"] == 4 * WIDTH * 1024


@pytest.mark.release
def test_two_processes_run_what_one_runs(environment, data, tmp_path):
  alone, together = tmp_path / "one", tmp_path / "two"
  status, _, err = run(environment, alone, *flags(data))
  assert status == 0, err
  for status, _, err in finish(
    start_together(environment, together, 2, 2, *flags(data))
  ):
    assert status == 0, err
  ours, theirs = (
    pq.read_table(w / "clusters.parquet") for w in (together, alone)
  )
  for name in ("index", "key", "label", "cluster"):
    assert ours[name] == theirs[name]
  first = [
    next(x["train/loss"] for x in lines_of(w) if "train/loss" in x)
    for w in (together, alone)
  ]
  assert first[0] == pytest.approx(first[1], rel=1e-4)
