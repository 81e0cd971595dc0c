"""The pictures of a page: whose they are, how large, and how many."""

import base64
import io
import json
import pathlib
import shutil
import urllib.parse

import numpy as np
import pytest
from PIL import Image

from odc_jax import report
from odc_jax.report import contents, pictures
from tests.report import runs


def test_a_picture_is_that_of_its_image(tmp_path):
  workdir, folder = runs.small_run(tmp_path)
  path = report.write(workdir)
  data, encoded = runs.read(path), runs.read(path, "pictures")
  for i, key in enumerate(data["images"]["key"]):
    shown = Image.open(
      io.BytesIO(base64.b64decode(encoded[data["images"]["picture"][i]]))
    )
    colour = np.asarray(shown.convert("RGB")).mean((0, 1))
    there = np.asarray(Image.open(folder / key)).mean((0, 1))
    np.testing.assert_allclose(colour, there, atol=6)


def test_the_source_is_gone(tmp_path, capsys):
  workdir, folder = runs.small_run(tmp_path)
  shutil.rmtree(folder)
  path = report.write(workdir)
  assert set(runs.read(path)["images"]["picture"]) == {-1}
  assert "Pictures are missing" in path.read_text()
  assert "there is no such folder" in path.read_text()
  assert "lacks pictures" in capsys.readouterr().err


def test_a_file_that_is_now_another_lends_its_picture_to_nobody(tmp_path):
  workdir, folder = runs.small_run(tmp_path)
  (folder / "cat" / "00.png").unlink()
  (folder / "eel" / "99.png").write_bytes(b"no image")
  path = report.write(workdir)
  # Every file has moved up by one.
  assert set(runs.read(path)["images"]["picture"]) == {-1}
  assert "60 of the images are no longer there" in path.read_text()


def large_run(tmp_path):
  """A run over 24 pictures of 400 x 300, of noise that a larger one shows."""
  keys = [f"{i:02d}.png" for i in range(24)]
  workdir, folder = runs.small_run(tmp_path)
  shutil.rmtree(folder)
  folder.mkdir()
  draw = np.random.default_rng(0)
  for key in keys:
    small = Image.fromarray(draw.integers(0, 256, (75, 100, 3), np.uint8))
    small.resize((400, 300), Image.Resampling.BICUBIC).save(folder / key)
  return workdir, {"key": keys, "index": list(range(24))}


def take(workdir, images, num_first=24):
  config = json.loads((workdir / "config.json").read_text())
  order = list(range(len(images["key"])))[::-1]
  return pictures.take(workdir, config, images, order, num_first)


def sides(made):
  """The longer side of every image's picture, 0 where it has none."""
  return [
    0
    if at < 0
    else max(Image.open(io.BytesIO(base64.b64decode(made.data[at]))).size)
    for at in made.of
  ]


def test_pictures_are_as_large_as_the_page_allows(tmp_path, monkeypatch):
  workdir, images = large_run(tmp_path)
  made = take(workdir, images)
  assert sides(made) == [256] * 24
  assert made.left_out == 0
  whole = sum(map(len, made.data))
  last = 256
  for share in (0.8, 0.6, 0.4):
    monkeypatch.setattr(pictures, "PICTURE_BYTES", int(share * whole))
    made = take(workdir, images)
    assert set(sides(made)) < set(pictures.SIDES)
    assert len(set(sides(made))) == 1
    assert sides(made)[0] < last
    last = sides(made)[0]
    assert sum(map(len, made.data)) <= share * whole


def test_where_not_all_fit_the_first_stay_large(tmp_path, monkeypatch):
  workdir, images = large_run(tmp_path)
  monkeypatch.setattr(pictures, "SIDES", (96,))
  whole = sum(map(len, take(workdir, images).data))
  budget = int(0.4 * whole)
  monkeypatch.setattr(pictures, "PICTURE_BYTES", budget)
  made = take(workdir, images, num_first=6)
  # The order of worth is the other way round.
  assert sides(made)[-6:] == [96] * 6
  others = sides(made)[:-6]
  assert set(others) == {0, pictures.SIDE_OF_OTHERS}
  assert sorted(others) == others
  assert made.left_out == others.count(0)
  assert 0.8 * budget < sum(map(len, made.data)) <= budget
  assert not made.problem
  monkeypatch.setattr(pictures, "PICTURES", 5)
  assert [side > 0 for side in sides(take(workdir, images))] == [
    *[False] * 19,
    *[True] * 5,
  ]


def test_what_comes_first_leaves_room_for_the_others(tmp_path, monkeypatch):
  workdir, images = large_run(tmp_path)
  monkeypatch.setattr(pictures, "SIDES", (96,))
  whole = sum(map(len, take(workdir, images).data))
  monkeypatch.setattr(pictures, "PICTURE_BYTES", int(0.5 * whole))
  made = take(workdir, images, num_first=20)
  assert sides(made).count(96) == pytest.approx(0.7 * 0.5 * 24, abs=1)
  assert 64 in sides(made)


def test_the_page_knows_the_way_to_the_files(tmp_path):
  workdir, folder = runs.small_run(tmp_path)
  url = runs.read(report.write(workdir))["folder"]
  there = pathlib.Path(workdir, urllib.parse.unquote(url)).resolve()
  assert there == folder
  # Both move together.
  moved = tmp_path / "elsewhere"
  moved.mkdir()
  workdir.rename(moved / "run")
  folder.rename(moved / "images")
  assert (moved / "run" / urllib.parse.unquote(url) / "cat/00.png").exists()


def test_images_that_are_no_files_have_none(tmp_path):
  workdir, _ = runs.small_run(tmp_path)
  config = json.loads((workdir / "config.json").read_text())
  config["data"]["source"] = "digits"
  (workdir / "config.json").write_text(json.dumps(config))
  shown = contents.read(workdir)
  made = pictures.take(
    workdir, config, shown.data["images"], shown.by_worth, shown.num_first
  )
  assert made.folder is None
