"""The program on folders of photographs: mixed, broken, changing."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn import datasets

from tests.program import (
  assert_refused,
  assert_same_run,
  kill_and_go_on,
  lines_of,
  run,
)

# Seconds, and a checkpoint every other second.
SHORT = [
  "--config=configs/odc_folder.py:scratch",
  "--config.data.image_size=32",
  "--config.data.eval_resize=36",
  "--config.model.width=8",
  "--config.num_epochs=4",
  "--config.log_every=4",
  "--config.checkpoint_every_epochs=1",
]
BROKEN = {"text.jpg": "not an image", "truncated.jpg": "truncated",
          "zero.jpeg": "empty"}  # fmt: skip


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
  """Crops of two photographs, no labels, and whatever is found in folders."""
  folder = tmp_path_factory.mktemp("photographs")
  rng = np.random.default_rng(0)
  scenes = [Image.fromarray(x) for x in datasets.load_sample_images().images]
  for i in range(300):
    left, top = rng.integers(0, 440), rng.integers(0, 280)
    crop = scenes[i % 2].crop((left, top, left + 160, top + 120))
    path = folder / f"album {i % 3}" / ("deep" if i % 2 else "") / f"{i}.JPG"
    path.parent.mkdir(parents=True, exist_ok=True)
    crop.save(path, "JPEG")
  data = path.read_bytes()
  (folder / "truncated.jpg").write_bytes(data[: len(data) // 2])
  (folder / "text.jpg").write_text("I am no image")
  (folder / "zero.jpeg").write_bytes(b"")
  scenes[0].convert("CMYK").save(folder / "cmyk.jpg")
  Image.new("RGB", (1, 1), (200, 9, 9)).save(folder / "1x1.png")
  scenes[1].resize((6000, 4000)).save(folder / "large.jpg")
  (folder / "\u0444\u043e\u0442\u043e").mkdir()
  scenes[1].save(folder / "\u0444\u043e\u0442\u043e" / "\u5199\u771f.png")
  return folder


@pytest.fixture(scope="module")
def finished(environment, photographs, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("finished") / "run"
  status, out, err = run(
    environment, workdir, *SHORT, f"--config.data.source=folder:{photographs}"
  )
  assert status == 0, err
  (workdir / "out.txt").write_text(out)
  return workdir


def test_a_folder_of_photographs_trains(finished, photographs):
  table = pq.read_table(finished / "clusters.parquet").to_pydict()
  assert len(table["key"]) == 304
  assert not set(table["key"]) & BROKEN.keys()
  names = {"cmyk.jpg", "1x1.png", "large.jpg", "album 1/deep/1.JPG",
           "\u0444\u043e\u0442\u043e/\u5199\u771f.png"}  # fmt: skip
  assert names <= set(table["key"])
  assert "label" not in table
  # The number of an image is its place in the list that is kept.
  listed = (finished / "images.txt").read_text().splitlines()
  assert len(listed) == 307
  assert [listed[i] for i in table["index"]] == table["key"]


def test_sizes_follow_from_the_folder_and_are_said(finished):
  config = json.loads((finished / "config.json").read_text())
  assert config["num_examples"] == 307
  assert (config["num_clusters"], config["batch_size"]) == (10, 16)
  out = (finished / "out.txt").read_text()
  assert "num_clusters = 10: 307 images / 128" in out
  assert "-bound: " in out


def test_the_broken_ones_are_named_with_their_reason(finished):
  lines = [
    line.split("\t")
    for line in (finished / "bad_images.txt").read_text().splitlines()
  ]
  assert {key: reason for _, _, key, reason in lines}.keys() == BROKEN.keys()
  for data_set, _, key, reason in lines:
    assert data_set == "train"
    assert BROKEN[key] in reason
  counted = [line.get("train/bad_images") for line in lines_of(finished)]
  assert {count for count in counted if count is not None} == {3}
  out = (finished / "out.txt").read_text()
  assert "3 of 307 images of the train set could not be read" in out


@pytest.mark.slow
def test_killed_on_a_folder_it_goes_on_as_if_nothing_had_happened(
  environment, finished, photographs, tmp_path
):
  flags = [*SHORT, f"--config.data.source=folder:{photographs}"]
  kill_and_go_on(environment, tmp_path / "run", *flags)
  assert_same_run(tmp_path / "run", finished)
  for name in ("bad_images.txt", "images.txt"):
    ours, theirs = tmp_path / "run" / name, finished / name
    assert ours.read_text() == theirs.read_text()


def test_a_changed_folder_is_refused_and_the_difference_named(
  environment, finished, photographs, tmp_path
):
  # The same path, other files: the folder is moved away for the moment.
  aside = tmp_path / "aside"
  photographs.rename(aside)
  try:
    shutil.copytree(aside, photographs)
    (photographs / "cmyk.jpg").unlink()
    Image.new("RGB", (9, 9)).save(photographs / "new one.png")
    before = lines_of(finished)
    assert_refused(
      run(
        environment,
        finished,
        *SHORT,
        f"--config.data.source=folder:{photographs}",
      ),
      "cmyk.jpg",
      "new one.png",
      "--workdir",
    )
    assert lines_of(finished) == before
  finally:
    shutil.rmtree(photographs)
    aside.rename(photographs)


@pytest.mark.slow
def test_the_way_of_reading_may_change_when_a_run_goes_on(
  environment, finished, photographs, tmp_path
):
  workdir = shutil.copytree(finished, tmp_path / "run")
  status, _, err = run(
    environment,
    workdir,
    *SHORT,
    # The same folder, by another name.
    f"--config.data.source=folder:{photographs}/",
    "--config.data.num_threads=1",
    "--config.data.prefetch=3",
  )
  assert status == 0, err
  config = json.loads((workdir / "config.json").read_text())
  assert config["data"]["num_threads"] == 1
  assert_same_run(workdir, finished)


@pytest.mark.parametrize(
  ("flag", "words"),
  [
    (
      "--config.data.max_bad_fraction=0.005",
      ["2 of the 307 images", "max_bad_fraction=0.005", "bad_images.txt"],
    ),
    ("--config.data.on_error=fail", ["'text.jpg'", "not an image"]),
    ("--config.num_clusters=many", ["num_clusters='many'", "auto"]),
  ],
)
def test_too_many_or_unwanted_broken_images_stop_the_run(
  environment, photographs, tmp_path, flag, words
):
  source = f"--config.data.source=folder:{photographs}"
  assert_refused(
    run(environment, tmp_path / "run", *SHORT, source, flag), *words
  )
  assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_without_a_folder_the_flag_is_named(environment, tmp_path):
  assert_refused(
    run(environment, tmp_path / "run", "--config=configs/odc_folder.py"),
    "--config.data.source=folder:",
  )
