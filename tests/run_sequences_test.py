"""The program on sequences of frames: from files to segments, with ODC."""

import itertools
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

import odc_jax
from odc_jax import mesh as mesh_lib
from odc_jax.errors import UserError
from tests.program import found_in, run_here

# ml_collections loads a config by a method that Python deprecates.
pytestmark = pytest.mark.filterwarnings(
  "ignore:the load_module:DeprecationWarning"
)

WIDTH, NUM_SEQUENCES, NUM_ACTIONS = 12, 10, 3

everything = mesh_lib.make_mesh


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
  """As most users have: eight take long to compile for."""
  monkeypatch.setattr(mesh_lib, "make_mesh", lambda **_: everything(1))


def make(root, seed=0):
  """Ten videos of three actions in order, with a frame of background each."""
  rng = np.random.default_rng(seed)
  (root / "features").mkdir(parents=True)
  (root / "groundTruth").mkdir()
  for i in range(NUM_SEQUENCES):
    words = np.repeat(["a", "b", "c"], rng.integers(4, 9, NUM_ACTIONS))
    actions = np.searchsorted(["a", "b", "c"], words)
    rows = rng.normal(4 * np.eye(3, WIDTH)[actions], 0.5)
    np.save(root / "features" / f"video{i}.npy", rows.astype(np.float16))
    words[-1] = "-"
    (root / "groundTruth" / f"video{i}").write_text("\n".join(words))
  (root / "mapping").mkdir()
  (root / "mapping" / "mapping.txt").write_text("-1 -\n0 a\n1 b\n2 c\n")
  return root


def flags(data, *others):
  return [
    "--config=configs/odc_folder.py",
    f"--config.data.source=sequences:{data}",
    "--config.num_clusters=3",
    "--config.num_epochs=3",
    "--config.batch_size=32",
    "--config.eval.every_epochs=3",
    "--config.eval.evaluators=('clustering','segmentation')",
    "--config.log_every=1",
    *others,
  ]


@pytest.mark.slow
def test_frames_become_segments(tmp_path, monkeypatch, capsys):
  data, workdir = make(tmp_path / "data"), tmp_path / "run"
  run_here(monkeypatch, f"--workdir={workdir}", *flags(data))
  assert "features of every frame, of 10 sequences" in capsys.readouterr().out
  summary = json.loads((workdir / "summary.json").read_text())
  for name in ("mof", "miou", "f1_majority", "f1_majority_sequence"):
    assert summary[f"eval/{name}_labels"] > 0.9, name
  # An action's cluster holds the frames of background, and all else is right.
  assert summary["eval/mof_background_labels"] < summary["eval/mof_labels"]

  frames = pq.read_table(workdir / "clusters.parquet").to_pydict()
  assert frames["key"][0] == "video0/000000"
  segments = pq.read_table(workdir / "segments.parquet").to_pylist()
  assert {*segments[0]} == {"sequence", "start", "end", "cluster", "confidence"}
  again = [
    (f"{part['sequence']}/{i:06d}", part["cluster"])
    for part in segments
    for i in range(part["start"], part["end"])
  ]
  assert again == [*zip(frames["key"], frames["cluster"], strict=True)]
  for one, other in itertools.pairwise(segments):
    is_same = one["sequence"] == other["sequence"]
    assert not is_same or one["cluster"] != other["cluster"]
  assert all(0 < part["confidence"] <= 1 for part in segments)

  # New sequences, without ground truth.
  new = make(tmp_path / "new", 1)
  (new / "mapping" / "mapping.txt").unlink()
  assigned = odc_jax.load(workdir).assign(new)
  assert len(assigned) == sum(
    len(np.load(file)) for file in new.glob("features/*")
  )
  # The same command goes on, where the folder lies elsewhere too.
  data.rename(tmp_path / "moved")
  again = flags(tmp_path / "moved")
  run_here(monkeypatch, f"--workdir={workdir}", *again)
  run_here(
    monkeypatch,
    f"--workdir={workdir}",
    "--mode=evaluate",
    *again,
    "--evals=segmentation",
  )
  assert found_in(workdir)["eval/mof_labels"] == summary["eval/mof_labels"]
  file = tmp_path / "moved" / "features" / "video3.npy"
  np.save(file, np.load(file)[:, ::-1])
  with pytest.raises(UserError, match="not those that this run began with"):
    run_here(monkeypatch, f"--workdir={workdir}", *again)


def test_mistakes_are_told_in_one_line(tmp_path, monkeypatch):
  data, workdir = make(tmp_path / "data"), tmp_path / "run"
  np.save(tmp_path / "f.npy", np.zeros((64, 4)))
  for other, says in [
    ("model.train=all", "no images to train a network on"),
    ("data.images=folder:x", r"data\.images=.* does nothing"),
    ("data.standardize=some", "unknown data.standardize"),
    ("data.split=tea", "has 'tea' in its name"),
  ]:
    command = flags(data, f"--config.{other}")
    with pytest.raises(UserError, match=says) as error:
      run_here(monkeypatch, f"--workdir={workdir}", *command)
    assert "\n" not in str(error.value)
  features = f"--config.data.source=features:{tmp_path / 'f.npy'}"
  with pytest.raises(UserError, match=r"segmentation: .* no sequences"):
    run_here(monkeypatch, f"--workdir={workdir}", *flags(data, features))
  others = "--config.eval.evaluators=()", "--config.data.mapping=x"
  with pytest.raises(UserError, match=r"data\.mapping=.* does nothing"):
    run_here(
      monkeypatch, f"--workdir={workdir}", *flags(data, features, *others)
    )
  assert not workdir.exists()
