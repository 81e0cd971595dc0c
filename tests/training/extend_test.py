"""A run that grows with its folder of images."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from ml_collections import ConfigDict
from PIL import Image

import odc_jax
from configs import odc_folder
from odc_jax import files, inference
from odc_jax.data import folder, growth
from odc_jax.errors import UserError
from odc_jax.interop import card, export
from odc_jax.methods import METHODS
from odc_jax.results import annotations
from odc_jax.training import extend, loop
from tests.interop.networks import experiment, random_weights

NUM_CLUSTERS = 5
OLD, NEW = 56, 14


def write_image(path, number):
  """Writes an image of one of three colours, unlike all other numbers."""
  rng = np.random.default_rng(number)
  coarse = rng.integers(0, 160, (5, 5, 3)).astype(np.uint8)
  coarse[..., number % 3] += 90
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(coarse).resize((40, 48)).save(path)


def write_old(images):
  for i in range(OLD):
    write_image(images / "mno"[i % 3] / f"{37 * i % 100:02d}.png", i)


def write_new(images):
  """New ones before, between and behind the old; one in a class of its own."""
  for i in range(OLD, OLD + NEW - 1):
    write_image(images / "mno"[i % 3] / f"{37 * i % 100:02d}.png", i)
  (images / "a").mkdir()
  bars = np.zeros((40, 40, 3), np.uint8)
  bars[..., 0] = 255 * (np.arange(40)[:, None] // 8 % 2)
  bars[..., 1] = 255 - bars[..., 0]
  Image.fromarray(bars).save(images / "a" / "bars.png")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  path = tmp_path_factory.mktemp("weights")
  config = experiment(name="resnet18", stem="imagenet", width=8)
  config.data.image_size, config.data.eval_resize = 32, 36
  arrays = export.state_dict(*random_weights(config), 0)
  export.write_files(path, arrays, card.describe(config), "a network\n")
  return path


def folder_of(images, weights, **overrides):
  config = odc_folder.get_config()
  values = {
    "num_clusters": str(NUM_CLUSTERS),
    "num_epochs": "0",
    "batch_size": "8",
    "data.source": f"folder:{images}",
    "model.weights": str(weights),
    "eval.batch_size": 16,
    "eval.evaluators": ("clustering",),
    "data.max_bad_fraction": 0.05,
  }
  config.update_from_flattened_dict({**values, **overrides})
  return config


def table_of(workdir):
  return pq.read_table(workdir / "clusters.parquet").to_pydict()


def state_of(workdir):
  """Returns what decides which collection a run is of."""
  checkpoints = [path.name for path in (workdir / "checkpoints").iterdir()]
  return (
    (workdir / "images.txt").read_text(),
    json.loads((workdir / "config.json").read_text())["num_examples"],
    growth.read(workdir),
    (workdir / "frozen.json").read_text(),
    sorted(checkpoints),
  )


class Killed(BaseException):
  """In place of SIGKILL, which no handler sees."""


def test_a_run_grows_with_its_folder(weights, tmp_path, monkeypatch, capsys):
  images, workdir = tmp_path / "images", tmp_path / "runs" / "run"
  write_old(images)
  loop.train(folder_of(images, weights), workdir)
  before = table_of(workdir)
  assert "generation" not in before
  named = {
    **{"format": "odc_jax annotations", "version": 1, "edited": ""},
    "run": annotations.digest(*map(np.array, (before["index"],
                                              before["cluster"]))),
    "names": [{"clusters": [c], "name": f"name {c}"} for c in range(3)],
    **{"groups": [], "images": [], "central": {str(c): [] for c in range(3)}},
  }  # fmt: skip
  (workdir / "annotations.json").write_text(json.dumps(named))

  write_new(images)
  gone = before["key"][3]
  renamed = before["key"][10]
  (images / gone).unlink()
  (images / renamed).rename(images / "n" / "another name.png")
  (images / "o" / "broken.png").write_text("no image")
  old_state = state_of(workdir)
  with pytest.raises(UserError, match=r"16 new .* and 2 gone .*--on_change"):
    loop.train(folder_of(images, weights), workdir)
  read = []
  opened = folder.Folder.__getitem__

  def reading(self, index):
    read.append(self.keys[index])
    return opened(self, index)

  def grow():
    return loop.train(folder_of(images, weights), workdir, on_change="extend")

  def killed_at(name):
    def kill(*args):
      raise Killed

    with monkeypatch.context() as patch:
      patch.setattr(folder.Folder, "__getitem__", reading)
      patch.setattr(files, name, kill)
      with pytest.raises(Killed):
        grow()

  killed_at("finish_replacing")
  assert state_of(workdir) == old_state
  assert {*read} == {*growth.change(before["key"], (), read).new}
  assert len({*read}) == NEW + 2  # and none of the old
  read.clear()
  killed_at("settle")  # decided, and nothing moved yet
  assert (workdir / ".replacing").exists()
  assert not read  # their features were kept
  inference.Run(workdir)  # whoever looks at it next finishes the work
  assert not (workdir / ".replacing").exists()
  new_state = state_of(workdir)
  _, num_examples, grown, *_ = new_state
  assert num_examples == OLD + NEW + 2
  assert grown is not None
  assert grown.sizes == (OLD, OLD + NEW + 2)
  assert (grown.epochs, grown.missing) == ((0,), {gone, renamed})
  capsys.readouterr()
  summary = grow()
  assert state_of(workdir) == new_state
  assert "have changed" not in capsys.readouterr().out
  assert "eval/purity_labels" in summary

  after = table_of(workdir)
  for name in ("index", "key", "cluster"):
    assert after[name][:OLD] == before[name]
  assert after["generation"] == [0] * OLD + [1] * (NEW + 1)
  assert after["key"][OLD:] == [
    key
    for key in sorted({*after["key"]} - {*before["key"]})
    if "broken" not in key
  ]
  missing = zip(after["key"], after["is_missing"], strict=True)
  assert {key for key, is_missing in missing if is_missing} == {gone, renamed}
  # The renamed one is new, and where it was.
  again = after["key"].index("n/another name.png")
  assert after["generation"][again] == 1
  assert after["cluster"][again] == before["cluster"][10]
  novel = [k for k, v in zip(after["key"], after["is_novel"], strict=True) if v]
  assert "a/bars.png" in novel
  assert len(novel) < NEW
  # Folders keep the numbers of their labels, a new one gets the next.
  assert after["label"][:OLD] == before["label"]
  assert after["label"][after["key"].index("a/bars.png")] == 3
  assert {*after["cluster_name"]} >= {"name 0", "name 1", "name 2"}
  assert all(
    name == (f"name {cluster}" if cluster < 3 else None)
    for name, cluster in zip(
      after["cluster_name"], after["cluster"], strict=True
    )
  )
  of_growth = json.loads((workdir / "clusters.json").read_text())["growth"]
  assert of_growth["new"] == NEW + 1
  assert (of_growth["novel"], of_growth["missing"]) == (len(novel), 2)
  page = (workdir / "report.html").read_text()
  assert 'id="new"' in page
  assert "Pictures are missing" not in page
  # What --mode=assign says of the new ones is what the run says.
  keys = after["key"][OLD:]
  found = odc_jax.load(workdir).assign([images / key for key in keys])
  assert found["cluster"].to_pylist() == after["cluster"][OLD:]

  # From now on the plain command finds it as it is.
  planned = extend.plan(
    folder_of(images, weights), workdir, folder.Folder(str(images)), None
  )
  assert not planned.due
  assert planned.train.keys == (
    (workdir / "images.txt").read_text().splitlines()
  )


@pytest.mark.parametrize(
  ("overrides", "words"),
  [
    ({"method": "deepcluster"}, "a run of deepcluster cannot grow"),
    ({"model.train": "all"}, "model.train=head"),
  ],
)
def test_what_cannot_grow_is_refused(overrides, words):
  config = ConfigDict({"method": "odc", "model": {"train": "head"}})
  config.update_from_flattened_dict(overrides)
  planned = extend.Plan([0] * 9, config, growth.Growth((8, 9), ()), due=True)
  with pytest.raises(UserError, match=words):
    extend.sized(planned, METHODS[config.method])
