"""Batches: the same ids and pixels whatever reads them."""

import ml_collections
import numpy as np
import pytest
from PIL import Image

from odc_jax.data import decode, loader, sources
from odc_jax.data import order as order_lib
from odc_jax.data.bad_images import BadImage
from odc_jax.data.decode import Crop
from odc_jax.errors import UserError


def make_config(**changes):
  config = ml_collections.ConfigDict(
    {
      "sampling": "permutation",
      "num_threads": 0,
      "num_workers": 0,
      "prefetch": 2,
    }
  )
  config.update(changes)
  return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """23 photographs of different sizes."""
  path = tmp_path_factory.mktemp("images")
  rng = np.random.default_rng(0)
  for i in range(23):
    image = rng.integers(0, 256, (20 + i, 40 - i, 3), dtype=np.uint8)
    Image.fromarray(image).save(path / f"{i:02d}.jpg")
  return path


@pytest.fixture(scope="module")
def source(folder):
  return sources.make(f"folder:{folder}", "")


TWO_VIEWS = Crop(16, (0.2, 1.0), (0.75, 1.33), views=2)


def take(source, config, count, crops=(TWO_VIEWS,), **options):
  options = {"batch_size": 8, "seed": 3, "start_step": 0} | options
  batches = loader.train_batches(source, config, crops=crops, **options)
  taken = [next(batches) for _ in range(count)]
  batches.close()
  return taken


def assert_same(left, right):
  assert len(left) == len(right)
  for a, b in zip(left, right, strict=True):
    np.testing.assert_array_equal(a["index"], b["index"])
    for ours, theirs in zip(a["image"], b["image"], strict=True):
      np.testing.assert_array_equal(ours, theirs)
    assert a["bad"] == b["bad"]


def test_indices_are_those_of_batch_indices_and_images_their_records(source):
  digits = sources.make("digits", "")
  whole = [Crop(8, (1.0, 1.0), (1.0, 1.0))]
  batches = take(
    digits, make_config(), 3, crops=whole, batch_size=100, start_step=16
  )
  for step, batch in enumerate(batches, 16):  # over the end of an epoch of 17
    index = order_lib.batch_indices(1797, 100, step, 3, "permutation")
    assert batch["index"].dtype == np.int32
    np.testing.assert_array_equal(batch["index"], index)
    (images,) = batch["image"]
    assert images.shape == (100, 1, 8, 8, 3)
    for row, i in enumerate(index):
      np.testing.assert_array_equal(images[row, 0], digits[int(i)]["image"])


@pytest.mark.parametrize("sampling", ["permutation", "replacement"])
def test_threads_and_resuming_change_nothing(source, sampling):
  config = make_config(sampling=sampling)
  want = take(source, config, 7)
  assert want[0]["image"][0].shape == (8, 2, 16, 16, 3)
  for num_threads in 2, 8:
    config.num_threads = num_threads
    assert_same(take(source, config, 7), want)
    assert_same(take(source, config, 3, start_step=4), want[4:])
  other = take(source, config, 1, seed=4)[0]
  assert (other["index"] != want[0]["index"]).any()


def test_processes_hold_consecutive_rows_of_the_same_batch(source):
  config = make_config()
  want = take(source, config, 4)
  for count in 2, 4:
    parts = [
      take(source, config, 4, process_index=p, process_count=count)
      for p in range(count)
    ]
    joined = [
      {
        "index": np.concatenate([part[s]["index"] for part in parts]),
        "image": (np.concatenate([part[s]["image"][0] for part in parts]),),
        "bad": [],
      }
      for s in range(4)
    ]
    assert_same(joined, want)


def test_worker_processes_change_nothing(folder, tmp_path):
  # With an image that cannot be read among the others.
  for path in folder.iterdir():
    (tmp_path / path.name).symlink_to(path)
  (tmp_path / "05.jpg").unlink()
  (tmp_path / "05.jpg").write_text("no image")
  source = sources.make(f"folder:{tmp_path}", "")
  want = take(source, make_config(), 4, start_step=1)
  assert any(batch["bad"] for batch in want)
  config = make_config(num_workers=2, num_threads=2)
  assert_same(take(source, config, 4, start_step=1), want)


def test_multi_crop_is_a_tuple_and_the_first_kind_stays_as_it_is(source):
  small = Crop(8, (0.05, 0.2), (0.75, 1.33), views=3)
  (alone,) = take(source, make_config(), 1)
  for num_threads in (0, 2):
    config = make_config(num_threads=num_threads)
    (both,) = take(source, config, 1, crops=[TWO_VIEWS, small])
    large, small_views = both["image"]
    assert small_views.shape == (8, 3, 8, 8, 3)
    np.testing.assert_array_equal(both["index"], alone["index"])
    np.testing.assert_array_equal(large, alone["image"][0])
  flat = small_views.reshape(24, -1)
  assert len(np.unique(flat, axis=0)) == 24


def test_crops_differ_between_views_copies_steps_and_epochs():
  source = sources.make("digits", "")
  # One example, for ever: nothing but the crop can differ.
  config = make_config(sampling="replacement")
  order = np.zeros(8, np.int32)
  crop = Crop(16, (0.3, 0.9), (0.75, 1.33), views=2)
  batches = take(source, config, 3, crops=[crop], order=order)
  images = np.concatenate(
    [b["image"][0].reshape(-1, 16 * 16 * 3) for b in batches]
  )
  # 48 crops of 8 x 8 pixels; a few may coincide.
  assert len(np.unique(images, axis=0)) > 30
  # View 0 is the same crop, however many there are.
  one = take(source, config, 1, [crop._replace(views=1)], order=order)[0]
  np.testing.assert_array_equal(
    one["image"][0][:, 0], batches[0]["image"][0][:, 0]
  )


@pytest.mark.parametrize(
  ("changes", "options", "says"),
  [
    ({}, {"batch_size": 24}, "batch_size 24 does not fit a data set of 23"),
    ({}, {"batch_size": 0}, "batch_size 0"),
    ({"sampling": "random"}, {}, "unknown sampling 'random'"),
    ({}, {"process_count": 3}, "not divisible by 3"),
  ],
)
def test_mistakes_are_told_before_anything_is_read(
  source, changes, options, says
):
  with pytest.raises(UserError, match=says):
    take(source, make_config(**changes), 0, **options)


@pytest.fixture
def broken(tmp_path):
  """Images of one colour each; numbers 1, 2 and 5, the last, are broken."""
  for i in range(6):
    Image.new("RGB", (4, 4), (40 * i,) * 3).save(tmp_path / f"{i}.png")
  (tmp_path / "1.png").write_bytes(b"<html>")
  (tmp_path / "2.png").write_bytes(b"")
  source = sources.make(f"folder:{tmp_path}", "")
  (tmp_path / "5.png").unlink()
  return source


@pytest.mark.parametrize("num_threads", [0, 2])
def test_the_next_good_image_stands_in_for_a_bad_one(broken, num_threads):
  config = make_config(num_threads=num_threads)
  (batch,) = take(broken, config, 1, batch_size=6)
  for row, i in enumerate(batch["index"]):
    stand_in = {1: 3, 2: 3, 5: 0}.get(int(i), int(i))
    np.testing.assert_array_equal(batch["image"][0][row], 40 * stand_in)
  # Number 2 was met twice: on its own, and on the way from 1 to 3.
  assert len(batch["bad"]) == 4
  reasons = {image.index: image.reason for image in batch["bad"]}
  assert reasons.keys() == {1, 2, 5}
  assert "not an image" in reasons[1]
  assert "empty" in reasons[2]
  assert "FileNotFoundError" in reasons[5]
  assert {image.key for image in batch["bad"]} == {"1.png", "2.png", "5.png"}
  assert batch["seconds"] >= 0


@pytest.mark.parametrize("num_threads", [0, 2])
def test_evaluation_names_bad_images_and_takes_no_label_from_others(
  tmp_path, num_threads
):
  for i in range(4):
    path = tmp_path / f"class {i % 2}" / f"{i}.png"
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (4, 4), (40 * i,) * 3).save(path)
  (tmp_path / "class 1" / "1.png").write_bytes(b"<html>")
  source = sources.make(f"folder:{tmp_path}", "")
  batches = list(
    loader.eval_batches(
      source, batch_size=3, resize=4, crop=4, num_threads=num_threads
    )
  )
  keys = [key for batch in batches for key in batch["key"]]
  assert keys[:4] == [
    "class 0/0.png", "class 0/2.png", "class 1/1.png", "class 1/3.png"
  ]  # fmt: skip
  label = np.concatenate([batch["label"] for batch in batches])
  np.testing.assert_array_equal(label, [0, 0, -1, 1, -1, -1])
  image = np.concatenate([batch["image"] for batch in batches])
  np.testing.assert_array_equal(image[:4, 0, 0, 0], [0, 80, 120, 120])
  (bad,) = [image for batch in batches for image in batch["bad"]]
  assert isinstance(bad, BadImage)
  assert bad[:2] == (2, "class 1/1.png")


def test_a_disk_that_is_gone_stops_the_run(tmp_path):
  for i in range(3):
    Image.new("RGB", (4, 4)).save(tmp_path / f"{i}.png")
  source = sources.make(f"folder:{tmp_path}", "")
  for path in tmp_path.iterdir():
    path.unlink()
  with pytest.raises(UserError, match=r"3 images in a row.*No such file"):
    take(source, make_config(), 1, batch_size=2)


@pytest.mark.parametrize("num_threads", [0, 3])
def test_evaluation_reads_everything_once_in_order(num_threads):
  source = sources.make("digits", "")
  batches = list(
    loader.eval_batches(
      source, batch_size=500, resize=8, crop=8, num_threads=num_threads
    )
  )
  assert len(batches) == 4
  index = np.concatenate([b["index"] for b in batches])
  np.testing.assert_array_equal(index[:1797], np.arange(1797))
  np.testing.assert_array_equal(index[1797:], 1797)
  label = np.concatenate([b["label"] for b in batches])
  assert (label.dtype, index.dtype) == (np.int32, np.int32)
  assert label[:1797].tolist() == [source[i]["label"] for i in range(1797)]
  np.testing.assert_array_equal(label[1797:], -1)
  image = np.concatenate([b["image"] for b in batches])
  np.testing.assert_array_equal(image[1234], source[1234]["image"])
  for padding in image[1797:]:
    np.testing.assert_array_equal(padding, source[1796]["image"])
  key = [key for b in batches for key in b["key"]]
  assert key[1796] == "digits/1796"
  assert key[1797:] == [""] * 203


def test_evaluation_of_a_full_last_batch_has_no_padding(source):
  (batch,) = loader.eval_batches(
    source, batch_size=23, resize=20, crop=16, num_threads=0
  )
  np.testing.assert_array_equal(batch["index"], np.arange(23))
  np.testing.assert_array_equal(batch["label"], -1)  # a flat folder has none
  with pytest.raises(UserError, match="eval_resize from 12"):
    loader.eval_batches(source, batch_size=4, resize=12, crop=16, num_threads=0)


def test_evaluation_of_whole_images_squashed(source):
  (batch,) = loader.eval_batches(
    source, batch_size=23, resize=20, crop=16, num_threads=0, squash=True
  )
  for i in (0, 22):
    image = decode.resize_squash(source[i]["image"], 20, 16)
    np.testing.assert_array_equal(batch["image"][i], image)
  # There is nothing to cut out, so nothing can be too large for it.
  (batch,) = loader.eval_batches(
    source, batch_size=23, resize=12, crop=16, num_threads=0, squash=True
  )
  assert batch["image"].shape == (23, 16, 16, 3)
