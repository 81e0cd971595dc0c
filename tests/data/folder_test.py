"""Which files of a folder are found, under which keys, in which order."""

import contextlib
import os
import pickle
import sys
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from odc_jax.data import folder, growth, loader, sources
from odc_jax.errors import UserError


def save(path, value=0):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new("RGB", (3, 2), (value,) * 3).save(path)


def keys(source):
  return [source[i]["key"] for i in range(len(source))]


def labels(source):
  return [source[i]["label"] for i in range(len(source))]


def test_a_folder_is_read_recursively_in_sorted_order(tmp_path):
  for name in ("b/z.PNG", "b/deep/er/x.jpg", "a.jpeg", "B.webp", "ü/c d.tif",
               ".hidden.png", ".git/y.png", "b/._z.png"):  # fmt: skip
    save(tmp_path / name)
  (tmp_path / "b" / "notes.txt").write_text("no image")
  (tmp_path / "b" / "png").write_text("no image")
  source = sources.make(f"folder:{tmp_path}", "")
  assert keys(source) == [
    "B.webp", "a.jpeg", "b/deep/er/x.jpg", "b/z.PNG", "ü/c d.tif"
  ]  # fmt: skip
  assert source.keys == keys(source)
  assert labels(source) == [None] * 5
  assert source.num_classes is None
  assert source[1]["image"] == (tmp_path / "a.jpeg").read_bytes()
  assert [source[i]["index"] for i in range(5)] == list(range(5))


def test_one_level_of_folders_is_the_labels(tmp_path):
  for name in ("dog/1.png", "cat/1.png", "cat/2.png", "eel/0.png"):
    save(tmp_path / "train" / name)
    save(tmp_path / "val" / "dog" / "3.png")
  source = sources.make(f"folder:{tmp_path}", "train")
  # Relative to the path that the user named: unique across splits.
  assert keys(source)[0] == "train/cat/1.png"
  assert labels(source) == [0, 0, 1, 2]
  assert source.num_classes == 3
  # Two levels of folders are no labels.
  assert sources.make(f"folder:{tmp_path}", "").num_classes is None
  # Nor is none at all.
  assert sources.make(f"folder:{tmp_path}/val/dog", "").num_classes is None


def test_links_are_followed_once(tmp_path):
  save(tmp_path / "real" / "cat" / "1.png")
  root = tmp_path / "root"
  root.mkdir()
  (root / "cat").symlink_to(tmp_path / "real" / "cat")
  (root / "again").symlink_to(tmp_path / "real" / "cat")
  (root / "itself.png").symlink_to(root / "itself.png")
  (tmp_path / "real" / "cat" / "loop").symlink_to(root)
  found = sources.make(f"folder:{root}", "").keys
  assert found == ["again/1.png", "itself.png"]


# ------------------------------------------------- names that are no text ---

# What is in the name, and in the key.
ODD_NAMES = {
  b"caf\xe9.png": r"caf\xe9.png",  # Latin-1
  b"\xff\xfe/x.png": r"\xff\xfe/x.png",
  b"two\nlines.png": r"two\nlines.png",
  b"a\ttab \x1b[31m\x7f.png": r"a\ttab \x1b[31m\x7f.png",
  "next\x85line\u2028.png".encode(): r"next\u0085line\u2028.png",
  rb"two\nlines.png": r"two\\nlines.png",
  # These can be printed and are left alone.
  "naïve 猫\u3000👩‍🚀 'quoted'.png".encode(): "naïve 猫\u3000👩‍🚀 'quoted'.png",
}


@pytest.fixture
def odd_folder(tmp_path):
  root = os.fsencode(tmp_path / "odd")
  for value, name in enumerate(ODD_NAMES):
    path = os.path.join(root, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
      with open(path, "wb") as file:
        Image.new("RGB", (4, 4), (value * 20,) * 3).save(file, "png")
    except OSError:
      pytest.skip("a file system that wants names to be text")
  return tmp_path / "odd"


def test_any_name_has_a_key_of_its_own_that_can_be_printed(odd_folder):
  source = sources.make(f"folder:{odd_folder}", "")
  assert sorted(keys(source)) == sorted(ODD_NAMES.values())
  for key in source.keys:
    assert len(key.splitlines()) == 1
    key.encode()
  files = {
    key: (odd_folder / os.fsdecode(name)).read_bytes()
    for name, key in ODD_NAMES.items()
  }
  for copy in source, pickle.loads(pickle.dumps(source)):
    for i, key in enumerate(source.keys):
      assert copy[i]["key"] == key
      assert copy[i]["image"] == files[key]


def test_odd_names_go_through_the_loader_and_the_list(odd_folder, tmp_path):
  source = sources.make(f"folder:{odd_folder}", "")
  batches = loader.eval_batches(
    source, batch_size=len(source), resize=4, crop=4, num_threads=1
  )
  batch = next(batches)
  assert batch["key"] == source.keys
  values = {key: i * 20 for i, key in enumerate(ODD_NAMES.values())}
  np.testing.assert_array_equal(
    batch["image"][:, 0, 0, 0], [values[key] for key in source.keys]
  )
  batches.close()
  folder.write_list(tmp_path / "images.txt", source.keys)
  lines = (tmp_path / "images.txt").read_bytes().decode().splitlines()
  assert lines == source.keys
  folder.check_list(tmp_path / "images.txt", source.keys)


# --------------------------------------------------------- the kept list ---


def test_the_kept_list_names_what_is_new_and_what_is_gone(tmp_path):
  kept = tmp_path / "images.txt"
  before = [f"cat/{i}.png" for i in range(6)]
  folder.write_list(kept, before)
  assert kept.read_text() == "".join(f"{key}\n" for key in before)
  folder.check_list(kept, before)
  after = ["ant/1.png", *before[:1], *before[5:], "cat/new.png"]
  with pytest.raises(UserError) as error:
    folder.check_list(kept, after)
  assert str(error.value) == (
    "the folder of images is not as it was when this run began, as kept in "
    f"{kept}: 2 new (ant/1.png, cat/new.png) and 4 gone (cat/1.png, "
    "cat/2.png, cat/3.png, ...); restore the folder, let the run grow with "
    "--on_change=extend, give new images clusters with --mode=assign, or start "
    "in a new --workdir"
  )
  with pytest.raises(UserError, match=r": 1 new \(x\.png\); restore"):
    folder.check_list(kept, [*before, "x.png"])
  with pytest.raises(UserError, match=r": 6 gone .*restore"):
    folder.check_list(kept, [])
  with pytest.raises(UserError, match="the order is another"):
    folder.check_list(kept, before[::-1])


def test_a_grown_folder_keeps_its_numbers(tmp_path):
  old = ["cat/1.png", "cat/3.png", "dog/1.png"]
  for key in old:
    (tmp_path / key).parent.mkdir(exist_ok=True)
    (tmp_path / key).write_bytes(key.encode())
  before = folder.Folder(str(tmp_path))
  (tmp_path / "cat" / "3.png").unlink()
  (tmp_path / "ant").mkdir()
  for key in ("cat/2.png", "ant/1.png"):
    (tmp_path / key).write_bytes(key.encode())
  found = folder.Folder(str(tmp_path)).numbered(old, 3)
  assert found.keys == [*old, "ant/1.png", "cat/2.png"]
  assert found.missing == {"cat/3.png"}
  assert before.classes == ["cat", "dog"]
  assert found.classes == ["cat", "dog", "ant"]
  for i in (0, 2, 3, 4):
    record = found[i]
    assert record["image"] == found.keys[i].encode()
    assert found.classes[record["label"]] == found.keys[i][:3]
  with pytest.raises(FileNotFoundError, match="removed"):
    found[1]
  assert list(found.stamps())[1] == "missing"


def test_a_run_that_has_grown_is_held_to_its_list(tmp_path):
  kept = tmp_path / "images.txt"
  folder.write_list(kept, ["b.png", "c.png", "a.png"])
  grown = growth.Growth((2, 3), (0,), frozenset({"c.png"}))
  folder.check_list(kept, ["a.png", "b.png"], grown)
  for there, words in (
    (["a.png"], r"1 gone \(b.png\)"),
    (["a.png", "b.png", "c.png"], r"1 back \(c.png\)"),
    (["a.png", "b.png", "d.png"], r"1 new \(d.png\)"),
  ):
    with pytest.raises(UserError, match=words):
      folder.check_list(kept, there, grown)


@pytest.mark.parametrize("data", [b"", b"a.png\nb.p", b"a.png\n\xff\n"])
def test_a_damaged_list_is_no_list(tmp_path, data):
  kept = tmp_path / "images.txt"
  kept.write_bytes(data)
  with pytest.raises(UserError, match="new --workdir"):
    folder.check_list(kept, ["a.png", "b.png"])


def test_the_list_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
  kept = tmp_path / "images.txt"
  folder.write_list(kept, ["a.png"])

  def full(descriptor):
    raise OSError("no space left on device")

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(OSError, match="no space"):
    folder.write_list(kept, ["a.png", "b.png"])
  assert kept.read_text() == "a.png\n"
  assert os.listdir(tmp_path) == ["images.txt"]


# ---------------------------------------------------------------- mistakes ---


@pytest.mark.parametrize(
  ("name", "split", "says"),
  [
    ("folder:", "", ["'folder:'", "--config.data.source=folder:/your/images"]),
    ("folder:", "train", ["--config.data.source=folder:/your/images"]),
    ("folder:{tmp}/nowhere", "", ["{tmp}/nowhere", "check the path"]),
    ("folder:{tmp}", "test", ["'test'", "empty, train"]),
    ("folder:{tmp}", "/", ["'/'", "empty, train"]),
    ("folder:{tmp}/empty", "", ["{tmp}/empty", "no images", ".jpg"]),
  ],
)
def test_mistakes_are_told_in_one_line(tmp_path, name, split, says):
  save(tmp_path / "train" / "1.png")
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError) as error:
    sources.make(name.format(tmp=tmp_path), split)
  message = str(error.value)
  assert "\n" not in message
  for part in says:
    assert part.format(tmp=tmp_path) in message


@pytest.mark.skipif(
  sys.platform == "win32" or os.geteuid() == 0, reason="may read everything"
)
def test_a_folder_that_cannot_be_listed_is_named(tmp_path):
  save(tmp_path / "locked" / "1.png")
  save(tmp_path / "open" / "1.png")
  (tmp_path / "locked").chmod(0)
  try:
    with pytest.raises(UserError, match=r"locked.*Permission denied.*readable"):
      sources.make(f"folder:{tmp_path}", "")
  finally:
    (tmp_path / "locked").chmod(0o700)


def test_a_folder_survives_pickling(tmp_path):
  save(tmp_path / "a" / "1.png", 7)
  source = sources.make(f"folder:{tmp_path}", "")
  copy = pickle.loads(pickle.dumps(source))
  assert len(copy) == len(source)
  np.testing.assert_equal(copy[0], source[0])


def test_what_is_no_file_is_not_waited_for(tmp_path):
  save(tmp_path / "a.png")
  os.mkfifo(tmp_path / "pipe.jpg")
  source = sources.make(f"folder:{tmp_path}", "")
  with pytest.raises(OSError, match="no regular file"):
    source[1]


def test_pictures_of_other_kinds_are_counted_and_systems_own_left_out(tmp_path):
  for name in (
    *("a.jfif", "b.JPE", "c.pgm", "d.avif", "e.jp2", "f.mpo", "g.apng"),
    *("h.heic", "i.HEIC", "j.psd", "k.txt", "l.svg/m.png"),
    *("@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "__MACOSX/a.jpg"),
    *("lost+found/a.jpg", "$RECYCLE.BIN/a.jpg"),
  ):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
  source = sources.make(f"folder:{tmp_path}", "")
  assert source.keys == [
    *("a.jfif", "b.JPE", "c.pgm", "d.avif", "e.jp2", "f.mpo", "g.apng"),
    "l.svg/m.png",
  ]
  assert source.passed_over == {".heic": 2, ".psd": 1}
  assert folder.counted(source.passed_over) == "2 .heic and 1 .psd"
  only = tmp_path / "only"
  only.mkdir()
  (only / "a.heic").touch()
  with pytest.raises(UserError, match=r"no images in .*, found 1 \.heic"):
    sources.make(f"folder:{only}", "")


@pytest.mark.parametrize("name", ["a.png", "x" * 5000, "~no-such-user/x", "\0"])
def test_what_is_no_folder_is_refused(tmp_path, name):
  save(tmp_path / "a.png")
  says = "is a file; give" if name == "a.png" else "there is no such folder"
  path = name if name.startswith("~") else f"{tmp_path}/{name}"
  with pytest.raises(UserError, match=says):
    sources.make(f"folder:{path}", "")


_PARTS = st.text(
  st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=9
)
_NAMES = st.one_of(
  _PARTS.map(str.encode), st.binary(min_size=1, max_size=9)
).map(lambda name: name.replace(b"/", b"").replace(b"\0", b"") or b"x")


@settings(max_examples=40, deadline=None)
@given(
  st.lists(st.tuples(_NAMES, _NAMES, st.sampled_from([b".png", b".JPG", b""]))),
  st.sampled_from(["", "a", "..", "/", "~", "train"]),
)
def test_a_folder_of_any_names_is_listed_or_refused(names, split):
  with tempfile.TemporaryDirectory() as root:
    written = 0
    for directory, name, suffix in names:
      path = os.path.join(os.fsencode(root), directory, name + suffix)
      with contextlib.suppress(OSError):  # of dots alone, or a file's
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
          file.write(path)
        written += 1
    try:
      source = sources.make(f"folder:{root}", split)
    except UserError as error:
      text = str(error)
    else:
      text = ""
      assert 0 < len(set(source.keys)) == len(source)
      for i, key in enumerate(source.keys):
        assert len(key.splitlines()) == 1
        assert key.encode()
        assert source[i]["key"] == key
        assert source[i]["image"].startswith(os.fsencode(root))
    assert "\n" not in text
