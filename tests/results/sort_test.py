"""Images sorted into folders, and small pictures in a run's table."""

import csv
import json
import os
import pathlib
import shutil
import unicodedata

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from odc_jax.data import sources
from odc_jax.errors import UserError
from odc_jax.results import annotations, pictures, sort, table
from odc_jax.results.originals import Originals
from tests.program import run_here
from tests.report import runs

NAMES = [
  "a/1.png",
  "b/1.png",
  "c/1.PNG",
  "c/1 (2).png",
  "\u0065\u0301.png",
  "d/\u00e9.png",
  "line\nbreak.png",
  "-rf.png",
  "images.csv.png",
  "d/$(touch x);'.png",
  os.fsdecode(b"no utf \xff.png"),
  f"d/{'l' * 249}.png",
  f"e/{'l' * 249}.png",
  "gone.png",
]


@pytest.fixture
def odd(tmp_path):
  """A run over files of odd names, all in one cluster but the last three."""
  folder = tmp_path / "images"
  runs.write_images(folder, NAMES)
  keys = list(sources.make(f"folder:{folder}").keys)
  workdir = tmp_path / "run"
  runs.write_history(workdir, f"folder:{folder}", 12, len(keys))
  clusters = np.zeros(len(keys), int)
  clusters[-3:] = 11
  x = np.eye(12)[clusters] + 0.01
  runs.write_clusters(workdir, keys, x, clusters, 12)
  (folder / "gone.png").unlink()
  return workdir, folder


def contents(folder):
  """Path below a folder -> bytes, size and time of every file."""
  return {
    path.relative_to(folder): (path.read_bytes(), path.stat().st_mtime_ns)
    for path in folder.rglob("*")
    if path.is_file()
  }


def listed(output):
  with (output / sort.LIST).open(encoding="utf-8", newline="") as file:
    return list(csv.DictReader(file))


@pytest.mark.parametrize("how", sort.AS)
def test_odd_and_clashing_names(odd, tmp_path, how):
  workdir, folder = odd
  before = contents(folder)
  output = tmp_path / "sorted"
  said = sort.sort(workdir, output, how=how)
  assert f"{len(NAMES) - 1} images in 2 folders" in said
  assert "1 are not in" in said
  assert "'gone.png'" in said
  assert sorted(os.listdir(output)) == ["cluster-00", "cluster-11", sort.LIST]
  rows = listed(output)
  assert len(rows) == len(NAMES) - 1
  assert len({row["key"] for row in rows}) == len(rows)
  originals = Originals(workdir)
  if how == "list":
    paths = []
    for name in ("cluster-00", "cluster-11"):
      assert os.listdir(output / name) == ["images.txt"]
      paths += (output / name / "images.txt").read_text().splitlines()
    assert sorted(paths) == sorted(row["path"] for row in rows)
    assert f"{folder}/a/1.png" in paths
    assert f"{folder}/line\\nbreak.png" in paths
  else:
    names = [
      (folder, unicodedata.normalize("NFC", name).casefold())
      for folder in ("cluster-00", "cluster-11")
      for name in os.listdir(output / folder)
    ]
    assert len(names) == len({*names}) == len(rows)
    for row in rows:
      path = originals.path(row["key"])
      assert path is not None
      # The list has names as keys have them; these here are plain.
      if row["name"].isascii() and "\\" not in row["name"]:
        new = output / row["folder"] / row["name"]
        assert new.is_symlink() == (how == "link")
        assert new.read_bytes() == pathlib.Path(path).read_bytes()
        if how == "link":
          assert os.readlink(new) == path
    assert {"1.png", "1 (2).png"} <= {row["name"] for row in rows}
  # Undone by deleting it, whatever it holds.
  shutil.rmtree(output)
  assert contents(folder) == before
  assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def annotate(workdir, names=(), groups=(), images=()):
  rows = pq.read_table(workdir / "clusters.parquet")
  spoken = {c for x in (*names, *groups) for c in x["clusters"]}
  saved = {
    "format": "odc_jax annotations",
    "version": 1,
    "run": annotations.digest(
      rows["index"].to_numpy(), rows["cluster"].to_numpy()
    ),
    "edited": "2025-01-31T12:00:00.000Z",
    "names": list(names),
    "groups": list(groups),
    "images": list(images),
    "central": {str(c): [] for c in spoken},
  }
  path = workdir.parent / "saved.json"
  path.write_text(json.dumps(saved))
  annotations.apply(workdir, path)


def test_names_become_folders_and_excluded_images_stay_out(tmp_path):
  workdir, _ = runs.small_run(tmp_path, num_clusters=6)
  annotate(
    workdir,
    names=[
      {"clusters": [0], "name": "a/b: c?"},
      {"clusters": [1], "name": "A_b_ C_"},  # the same to Windows
      {"clusters": [2, 3], "name": "merged"},
      {"clusters": [4], "name": "../../etc"},
    ],
    images=[
      {"key": "cat/05.png", "mark": "exclude"},
      {"key": "cat/00.png", "mark": "keep"},
    ],
  )
  said = sort.sort(workdir, tmp_path / "sorted", how="copy")
  assert '1 marked "exclude" were left out' in said
  found = {
    path.name: len(os.listdir(path))
    for path in (tmp_path / "sorted").iterdir()
    if path.is_dir()
  }
  assert found == {
    "a_b_ c_": 10,
    "A_b_ C_ (2)": 10,
    "merged": 20,
    "_.._etc": 10,
    "cluster-5": 9,
  }


def test_by_group(tmp_path):
  workdir, _ = runs.small_run(tmp_path)
  with pytest.raises(UserError, match="--num_groups"):
    sort.sort(workdir, tmp_path / "sorted", by="group")
  workdir, _ = runs.small_run(tmp_path, num_groups=3)
  rows = table.read(workdir / "clusters.parquet").to_pydict()
  members = {}
  for cluster, group in zip(
    rows["cluster"], rows["cluster_group"], strict=True
  ):
    members.setdefault(group, set()).add(cluster)
  annotate(workdir, groups=[{"clusters": sorted(members[1]), "name": "pets"}])
  sort.sort(workdir, tmp_path / "sorted", by="group")
  found = {row["key"]: row["folder"] for row in listed(tmp_path / "sorted")}
  assert found == {
    key: "pets" if group == 1 else f"group-{group}"
    for key, group in zip(rows["key"], rows["cluster_group"], strict=True)
  }


@pytest.mark.parametrize(
  ("text", "name"),
  [
    ("Grandma's 80th, 2019", "Grandma's 80th, 2019"),
    ("\u5bb6\u65cf", "\u5bb6\u65cf"),
    ("...", "_"),
    (" a. ", "a"),
    ("CON", "_CON"),
    ("nul.txt", "_nul.txt"),
    ("console", "console"),
    ("\x00\n\u202e", "__\u202e"),
    ("\u00e9" * 80, "\u00e9" * 50),
  ],
)
def test_names_of_folders_are_safe(text, name):
  assert sort.safe_name(text) == name


def test_nothing_is_overwritten(tmp_path, monkeypatch):
  workdir, folder = runs.small_run(tmp_path)
  full, file = tmp_path / "full", tmp_path / "file"
  full.mkdir()
  (full / "mine.txt").write_text("mine")
  file.write_text("mine")
  link = tmp_path / "link"
  link.symlink_to(tmp_path / "elsewhere")
  for output, words in (
    (full, "not empty"),
    (file, "is there already"),
    (link, "is there already"),
    (folder / "sorted", "inside"),
    (tmp_path / "no" / "where", "is no folder"),
  ):
    with pytest.raises(UserError, match=words):
      run_here(
        monkeypatch,
        f"--workdir={workdir}",
        "--mode=sort",
        f"--output={output}",
      )
  assert (full / "mine.txt").read_text() == file.read_text() == "mine"
  with pytest.raises(UserError, match="--output="):
    run_here(monkeypatch, f"--workdir={workdir}", "--mode=sort")
  with pytest.raises(UserError, match="--sort_as needs --mode=sort"):
    run_here(
      monkeypatch, f"--workdir={workdir}", "--mode=report", "--sort_as=copy"
    )
  # A disk that fails in the middle leaves nothing.
  broken = OSError(28, "No space left on device")

  def fail(path, new):
    if "eel" in str(path):
      raise broken

  monkeypatch.setattr(shutil, "copy2", fail)
  with pytest.raises(UserError, match="No space left"):
    sort.sort(workdir, tmp_path / "sorted", how="copy")
  assert not list(tmp_path.glob("*sorted*"))
  monkeypatch.undo()
  (tmp_path / "sorted").mkdir()  # empty
  run_here(
    monkeypatch,
    f"--workdir={workdir}",
    "--mode=sort",
    f"--output={tmp_path / 'sorted'}",
  )
  assert len(listed(tmp_path / "sorted")) == 60
  for path in folder.rglob("*.png"):
    path.unlink()
  with pytest.raises(UserError, match="no images"):
    sort.sort(workdir, tmp_path / "again")


def test_images_that_are_no_files_are_not_sorted(tmp_path):
  workdir, _ = runs.small_run(tmp_path)
  runs.write_history(workdir, "digits", 5, 60)
  with pytest.raises(UserError, match="are none"):
    sort.sort(workdir, tmp_path / "sorted")
  # They have pictures all the same, found by their numbers.
  originals = Originals(workdir)
  assert originals.picture("digits/0003", 3, 64) is not None
  assert originals.picture("digits/0003", 4, 64) is None
  assert originals.path("digits/0003") is None


def test_the_folder_in_the_table_is_found_from_anywhere(tmp_path, monkeypatch):
  workdir, folder = runs.small_run(tmp_path)
  monkeypatch.chdir(tmp_path)
  runs.write_history(workdir, "folder:images", 5, 60)
  path = workdir / "clusters.parquet"
  rows = pq.read_table(path)
  pq.write_table(
    rows.replace_schema_metadata({table.FOLDER: os.fsencode(folder)}), path
  )
  monkeypatch.chdir("/")
  found = Originals(workdir).path("dog/07.png")
  assert found == str(folder / "dog" / "07.png")


def test_small_pictures_of_the_images_that_are_there(tmp_path, monkeypatch):
  workdir, folder = runs.small_run(tmp_path)
  (folder / "cat" / "03.png").unlink()
  (folder / "cat" / "04.png").write_bytes(b"broken")
  wide = np.zeros((200, 300, 3), np.uint8)
  Image.fromarray(wide).save(folder / "cat" / "05.png")
  run_here(monkeypatch, f"--workdir={workdir}", "--mode=report", "--thumbnails")
  rows = pq.read_table(workdir / "clusters.parquet").to_pydict()
  images = dict(zip(rows["key"], rows["image"], strict=True))
  missing = {key for key, image in images.items() if image is None}
  assert missing == {"cat/03.png", "cat/04.png"}
  path = tmp_path / "picture"
  for key, size in (("cat/05.png", (128, 85)), ("eel/19.png", (32, 24))):
    assert images[key]["path"] == key
    path.write_bytes(images[key]["bytes"])
    with Image.open(path) as picture:
      assert picture.format == "WEBP"
      assert picture.size == size
      if key == "eel/19.png":
        original = Image.open(folder / key)
        difference = np.asarray(picture.convert("RGB"), int) - np.asarray(
          original, int
        )
        assert np.abs(difference.mean()) < 3
  shutil.rmtree(folder)
  with pytest.raises(UserError, match="cannot be opened"):
    pictures.add(workdir)
