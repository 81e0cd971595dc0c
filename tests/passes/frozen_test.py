"""The pass through a frozen backbone: killed, found again, shared."""

import functools
import json
import os
import pathlib
import shutil

import filelock
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from odc_jax import mesh as mesh_lib
from odc_jax.data import sources
from odc_jax.data.features import Features
from odc_jax.data.folder import Folder
from odc_jax.distributed.stop import StoppedError
from odc_jax.models.network import Outputs
from odc_jax.passes import frozen
from tests.evals import subjects
from tests.program import work_together

N, BATCH_SIZE = 43, 8
BAD = (12, 13, N - 1)  # within, and the last, which the first stands in for


def write_images(path):
  rng = np.random.default_rng(0)
  for i in range(N):
    image = rng.integers(0, 256, (20, 16, 3), dtype=np.uint8)
    (path / f"{i % 3}").mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path / f"{i % 3}" / f"{i:02d}.png")
  keys = Folder(str(path)).keys
  for i in BAD:
    (path / keys[i]).write_text("no image")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
  path = tmp_path_factory.mktemp("images")
  write_images(path)
  return path


@pytest.fixture
def one_device():
  mesh = mesh_lib.make_mesh(1)
  with jax.set_mesh(mesh):
    yield mesh


def experiment(path, **overrides):
  config = ConfigDict(
    {
      "data": {
        "source": f"folder:{path}",
        "image_size": 12,
        "eval_resize": 14,
        "interpolation": "bicubic",
        "num_threads": 2,
      },
      "augment": {"mean": (0.5,) * 3, "std": (0.2,) * 3, "sobel": False},
      "model": {
        "name": "resnet18",
        "stem": "small",
        "width": 8,
        "dtype": "float32",
        "settings": {},
      },
      "eval": {"batch_size": BATCH_SIZE},
    }
  )
  config.update_from_flattened_dict(overrides)
  return config


def forward(params, batch_stats, images):
  """Features that no two images share."""
  x = images.astype(jnp.float32).reshape(len(images), -1)
  features = jnp.tanh((x / 255 + batch_stats) @ params)
  return Outputs(features, features)


def network():
  rng = np.random.default_rng(1)
  weights = rng.normal(size=(12 * 12 * 3, 6)).astype(np.float32)
  return weights, np.float32(-0.5)


class Pass:
  """A pass, counted; `at` is called with the number of every batch."""

  def __init__(self, config, mesh, at=lambda number: None):
    self.batches, self.bad, self.advanced = 0, [], []
    look = frozen.looker(forward, network(), mesh)

    def counted(images):
      at(self.batches)
      self.batches += 1
      return look(images)

    def advance(done):
      self.advanced.append(done)

    self.run = functools.partial(
      frozen.features,
      sources.make(config.data.source),
      config=config,
      mesh=mesh,
      look=counted,
      met=self.bad.extend,
      advance=advance,
    )


def test_two_runs_do_not_make_the_same_features_at_once(
  images, tmp_path, one_device, monkeypatch, capsys
):
  config = experiment(images)
  expected = whole_pass(tmp_path / "expected", config, one_device)
  folder = tmp_path / "kept"
  folder.mkdir()
  lock = filelock.FileLock(folder / "lock")  # the other run's
  lock.acquire()
  looks = []

  def finish(seconds):
    # The other run ends while this one waits for the second time.
    looks.append(seconds)
    if len(looks) == 2:
      shutil.copytree(tmp_path / "expected", folder, dirs_exist_ok=True)
      lock.release()

  monkeypatch.setattr(frozen.time, "sleep", finish)
  waiting = Pass(config, one_device)
  assert_same(waiting.run(folder), expected)
  assert waiting.batches == 0
  assert {image.index for image in waiting.bad} == {*BAD}
  assert capsys.readouterr().out.count("waiting for it") == 1
  # Nobody is kept waiting by one that has ended, or was killed.
  assert json.loads((folder / "done.json").read_text())["rows"] == N
  (folder / "done.json").unlink()
  again = Pass(config, one_device)
  assert_same(again.run(folder), expected)
  assert again.batches == 6
  assert len(looks) == 2


def whole_pass(folder, config, mesh):
  return Pass(config, mesh).run(folder)


def assert_same(found, expected):
  for name in ("features", "signatures", "labels"):
    np.testing.assert_array_equal(
      getattr(found, name), getattr(expected, name), err_msg=name
    )
  assert found.keys == expected.keys


def test_every_image_has_its_row(images, tmp_path, mesh):
  config = experiment(images)
  once = Pass(config, mesh)
  found = once.run(tmp_path / "kept")
  assert once.batches == 6
  assert once.advanced == list(range(0, N, BATCH_SIZE))
  assert {image.index for image in once.bad} == {*BAD}
  source = sources.make(config.data.source)
  assert found.keys == [*source.keys]
  # Of another image there are other features: what cannot be read has those of
  # the next that can, and no label.
  features = np.asarray(found.features)[:N]
  for i, alike in (
    *((0, {0, N - 1}), (11, {11}), (12, {12, 13, 14}), (13, {12, 13, 14})),
    *((14, {12, 13, 14}), (N - 1, {0, N - 1})),
  ):
    # At another place of a batch the same image rounds otherwise.
    distance = np.max(np.abs(features - features[i]), axis=1)
    assert {*np.flatnonzero(distance < 1e-5).tolist()} == alike
    assert found.labels[i] == (-1 if i in BAD else int(source.keys[i][0]))
  np.testing.assert_array_equal(found.features[N:], 0)
  assert found.features.sharding.is_equivalent_to(mesh_lib.rows(mesh), 2)

  again = Pass(config, mesh)
  assert_same(again.run(tmp_path / "kept"), found)
  assert not again.batches
  # Who asks later is told of the bad ones too.
  assert {image.index for image in again.bad} == {*BAD}


@pytest.mark.parametrize("seconds", [0.0, 1e9], ids=["noted", "not noted"])
@pytest.mark.parametrize("number", [0, 1, 2, 5])
def test_killed_at_any_batch_it_gives_the_same_bits(
  images, tmp_path, monkeypatch, one_device, number, seconds
):
  """What a kill leaves: what is there at that moment, and rows half written."""
  monkeypatch.setattr(frozen, "_NOTE_SECONDS", seconds)
  config = experiment(images)
  left = tmp_path / "left"

  def kill(now):
    if now == number and (tmp_path / "kept").exists():
      shutil.copytree(tmp_path / "kept", left)

  expected = Pass(config, one_device, kill).run(tmp_path / "kept")
  noted = number * BATCH_SIZE if seconds == 0 else 0
  for name in ("features", "signatures", "labels"):
    if (left / f"{name}.npy").exists():
      array = np.load(left / f"{name}.npy", mmap_mode="r+")
      array[noted:] = 7
      array.flush()
  rest = Pass(config, one_device)
  assert_same(rest.run(left), expected)
  assert rest.batches == 6 - noted // BATCH_SIZE
  assert {image.index for image in rest.bad} == {*BAD}


def test_stopped_it_goes_on_there_also_with_other_batches(
  images, tmp_path, one_device
):
  mesh = one_device
  config = experiment(images)
  expected = whole_pass(tmp_path / "whole", config, mesh)

  def stop(number):
    if number == 3:
      raise StoppedError

  with pytest.raises(StoppedError):
    Pass(config, mesh, stop).run(tmp_path / "kept")
  rest = Pass(experiment(images, **{"eval.batch_size": 10}), mesh)
  found = rest.run(tmp_path / "kept")
  assert rest.advanced == [20, 30, 40]  # 24 were whole
  np.testing.assert_allclose(found.features, expected.features, atol=1e-6)
  assert found.keys == expected.keys
  np.testing.assert_array_equal(found.labels, expected.labels)


@pytest.mark.parametrize("unreadable", [False, True])
def test_of_a_larger_collection_only_what_is_new_is_read(
  images, tmp_path, one_device, monkeypatch, unreadable
):
  mesh, path = one_device, tmp_path / "images"
  shutil.copytree(images, path)
  config = experiment(path)
  before = whole_pass(tmp_path / "before", config, mesh)
  kept = [*sources.make(config.data.source).keys]
  new = [f"0/before {i}.png" for i in range(BATCH_SIZE + 1)]
  for i, key in enumerate(new):
    Image.new("RGB", (20, 16), (9 * i, 99, 0)).save(path / key)
  if unreadable:
    (path / new[-1]).write_text("no image")
  (path / kept[5]).unlink()
  read = []
  opened = Folder.__getitem__

  def reading(self, index):
    read.append(self.keys[index])
    return opened(self, index)

  monkeypatch.setattr(Folder, "__getitem__", reading)
  larger = Folder(str(path)).numbered(kept, N)

  def grow(at=lambda number: None):
    grown = Pass(config, mesh, at)
    grown.run = functools.partial(grown.run.func, larger, **grown.run.keywords)
    return grown, grown.run(tmp_path / "after", before=tmp_path / "before")

  def stop(number):
    if number == 1:
      raise StoppedError

  with pytest.raises(StoppedError):
    grow(stop)
  assert {*read} <= {*new}
  grown, found = grow()
  assert {*read} == {*new}
  assert grown.batches == 1  # of two, the first was done
  np.testing.assert_array_equal(found.features[:N], before.features[:N])
  np.testing.assert_array_equal(found.signatures[:N], before.signatures[:N])
  np.testing.assert_array_equal(found.labels[:N], before.labels)
  assert found.keys == [*kept, *new]
  assert len({*map(bytes, np.asarray(found.features[N : N + len(new)]))}) == 9
  bad = {*BAD, N + BATCH_SIZE} if unreadable else {*BAD}
  assert {image.index for image in grown.bad} == bad
  assert found.labels[-1] == (-1 if unreadable else 0)
  again, same = grow()
  assert_same(same, found)
  assert not again.batches
  # One that came in the middle has the features that a pass of its own gives.
  alone = Pass(experiment(path), mesh).run(tmp_path / "alone")
  there = alone.keys.index(new[3])
  np.testing.assert_allclose(
    alone.features[there], found.features[N + 3], atol=1e-5
  )


def test_what_was_deleted_is_computed_again(images, tmp_path, one_device):
  mesh, config = one_device, experiment(images)
  expected = whole_pass(tmp_path / "kept", config, mesh)
  (tmp_path / "kept" / "features.npy").unlink()
  again = Pass(config, mesh)
  assert_same(again.run(tmp_path / "kept"), expected)
  assert again.batches == 6


def test_the_name_of_the_features_follows_from_what_makes_them(
  images, tmp_path
):
  path = tmp_path / "images"
  shutil.copytree(images, path)

  def name(weights="sha", split="", **overrides):
    config = experiment(path, **overrides)
    return frozen.digest(
      sources.make(config.data.source), split, config, weights
    )

  first = name()
  assert name(**{"eval.batch_size": 16, "data.num_threads": 0}) == first
  others = [
    name(weights="another"),
    name(split="test"),
    name(**{"data.image_size": 10}),
    name(**{"data.eval_resize": 12}),
    name(**{"data.interpolation": "bilinear"}),
    name(**{"augment.mean": (0.4, 0.5, 0.5)}),
    name(**{"model.dtype": "bfloat16"}),
    # Of random weights there is but the seed.
    name(**{"model.width": 16}),
    name(**{"model.stem": "imagenet"}),
  ]
  settings = experiment(path)
  with settings.unlocked():
    settings.model.settings = {"pool": "mean"}
  source = sources.make(settings.data.source)
  others.append(frozen.digest(source, "", settings, "sha"))
  file = path / source.keys[3]
  before = file.stat()
  file.write_bytes((path / source.keys[4]).read_bytes())
  others.append(name())
  os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
  others.append(name())
  file.unlink()
  others.append(name())
  assert len({first, *others}) == 1 + len(others)
  # The same images elsewhere are the same, if their files are.
  assert name() != first
  moved = tmp_path / "moved"
  path.rename(moved)
  elsewhere = experiment(moved)
  assert others[-1] == frozen.digest(
    sources.make(elsewhere.data.source), "", elsewhere, "sha"
  )


def test_one_and_eight_devices_agree(tmp_path):
  """A real network, which rounds as the batch is divided."""
  found = {}
  for count in (1, 8):
    mesh = mesh_lib.make_mesh(count)
    with jax.set_mesh(mesh):
      subject = subjects.digits(mesh, num_train=64, num_test=0)
      config = subjects.with_config(subject, eval__batch_size=24).config
      rows = frozen.features(
        subject.train.source,
        tmp_path / str(count),
        config,
        mesh,
        frozen.looker(
          subject.forward, (subject.params, subject.batch_stats), mesh
        ),
        met=lambda bad: None,
        advance=lambda done: None,
      )
    found[count] = rows
    # What the pass of every evaluation makes of them.
    np.testing.assert_allclose(
      rows.features[:64], subject.train.features.features[:64], atol=1e-5
    )
  np.testing.assert_allclose(found[1].features, found[8].features, atol=1e-5)
  np.testing.assert_array_equal(found[1].signatures, found[8].signatures)
  np.testing.assert_array_equal(found[1].labels, found[8].labels)
  assert found[1].keys == found[8].keys
  assert np.std(np.asarray(found[1].features[:64]), axis=0).max() > 0.01


def test_features_from_elsewhere_lie_where_those_of_a_pass_would(mesh):
  rows = np.random.default_rng(0).normal(size=(N, 6)).astype(np.float16)
  found = frozen.given(Features(rows), mesh)
  assert found.features.dtype == np.float32
  np.testing.assert_array_equal(found.features[:N], rows)
  np.testing.assert_array_equal(found.features[N:], 0)
  assert found.features.shape[0] == mesh_lib.padded_rows(N)
  assert found.features.sharding.is_equivalent_to(mesh_lib.rows(mesh), 2)
  assert found.signatures.shape == (mesh_lib.padded_rows(N), 0)
  assert found.keys == [str(i) for i in range(N)]
  assert set(found.labels) == {-1}


def work(process, count, port, folder, out):
  """Passes over the images as process `process` of `count`."""
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", 4 // count)
  if count > 1:
    jax.distributed.initialize(f"localhost:{port}", count, process)
  mesh = mesh_lib.make_mesh()
  with jax.set_mesh(mesh):
    config = experiment(folder)
    once = Pass(config, mesh)
    rows = once.run(pathlib.Path(out.rpartition("_")[0] + "_kept"))
    saved = {
      f"{name}/{shard.index[0].start or 0}": np.asarray(shard.data)
      for name in ("features", "signatures")
      for shard in getattr(rows, name).addressable_shards
    }
  np.savez(
    out, labels=rows.labels, keys=rows.keys, batches=once.batches, **saved
  )


@pytest.mark.slow
def test_two_processes_give_what_one_gives(images, tmp_path):
  found = {}
  for count in (1, 2):
    outs = [str(tmp_path / f"{count}_{p}.npz") for p in range(count)]
    work_together(__name__, images, outs)
    found[count] = [dict(np.load(out)) for out in outs]
  (alone,), (first, second) = found[1], found[2]
  for name in ("labels", "keys", "batches"):
    np.testing.assert_array_equal(first.pop(name), alone[name])
    np.testing.assert_array_equal(second.pop(name), alone.pop(name))
  assert not first.keys() & second.keys()
  halves = first | second
  assert halves.keys() == alone.keys()
  for name, array in alone.items():
    np.testing.assert_allclose(halves[name], array, atol=1e-6, err_msg=name)
