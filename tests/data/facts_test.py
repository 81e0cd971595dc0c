"""What the files of images say of themselves."""

import datetime
import hashlib
import io
import os

import numpy as np
import pytest
from PIL import Image

from odc_jax.data import facts, sources
from odc_jax.data.decode import DecodeError

TAKEN = datetime.datetime(2019, 7, 4, 12, 30, 1)


def encoded(pixels, form="PNG", exif=None, **options):
  file = io.BytesIO()
  image = Image.fromarray(np.asarray(pixels, np.uint8))
  if exif is not None:
    options["exif"] = exif
  image.save(file, form, **options)
  return file.getvalue()


def exif_of(tags=(), inner=()):
  exif = Image.Exif()
  exif.update(dict(tags))
  exif.get_ifd(0x8769).update(dict(inner))
  return exif


def test_light_and_sharpness_by_hand():
  # Luma 0 and 255, by columns; 3 x 4.
  pixels = np.zeros((3, 4), np.uint8)
  pixels[:, 2:] = 255
  found = facts.of_image(pixels)
  assert (found.width, found.height) == (4, 3)
  assert found.brightness == pytest.approx(0.5)
  # The Laplacian of the two inner pixels: 255 and 255 - 2 * 255.
  assert found.sharpness == pytest.approx(255**2)
  assert found.sha256 == hashlib.sha256(pixels.tobytes()).hexdigest()
  assert found.taken is None
  assert facts.of_image(np.full((2, 9), 51, np.uint8)).sharpness is None
  colour = np.full((5, 5, 3), (255, 0, 0), np.uint8)
  assert facts.of_image(colour).brightness == pytest.approx(0.299, abs=0.002)


def test_a_blurred_photograph_is_less_sharp_at_any_size():
  rng = np.random.default_rng(0)
  coarse = Image.fromarray(rng.integers(0, 256, (48, 64), np.uint8))
  smooth = []
  for side in (256, 1024):
    sharp = coarse.resize((side, side * 3 // 4), Image.Resampling.NEAREST)
    blurred = coarse.resize(sharp.size, Image.Resampling.BICUBIC)
    both = [
      facts.of_image(encoded(np.asarray(image), "JPEG", quality=95))
      for image in (sharp, blurred)
    ]
    assert both[0].sharpness > 3 * both[1].sharpness
    assert (both[0].width, both[0].height) == sharp.size
    smooth.append(both[1].sharpness)
  assert smooth[1] == pytest.approx(smooth[0], rel=0.25)


@pytest.mark.parametrize(
  ("exif", "taken"),
  [
    (exif_of(inner={0x9003: "2019:07:04 12:30:01"}), TAKEN),
    (exif_of({0x0132: "2019:07:04 12:30:01"}), TAKEN),
    (
      exif_of({0x0132: "2021:01:01 00:00:00"}, {0x9003: "2019:07:04 12:30:01"}),
      TAKEN,
    ),
    (exif_of(inner={0x9003: "0000:00:00 00:00:00"}), None),
    (exif_of(inner={0x9003: "yesterday"}), None),
    (exif_of({0x0112: 6}), None),
  ],
)
def test_the_date_is_that_of_the_camera(exif, taken):
  data = encoded(np.zeros((4, 6, 3)), "JPEG", exif)
  assert facts.of_image(data).taken == taken


def test_a_turned_image_has_the_size_that_one_sees():
  data = encoded(np.zeros((4, 6, 3)), "JPEG", exif_of({0x0112: 6}))
  assert facts.of_image(data)[:2] == (4, 6)
  with pytest.raises(DecodeError):
    facts.of_image(b"no image")


@pytest.fixture
def folder(tmp_path):
  folder = tmp_path / "images"
  folder.mkdir()
  for i in range(6):
    data = encoded(np.full((4, 5 + i), 40 * i))
    (folder / f"{i}.png").write_bytes(data)
  (folder / "3.png").write_bytes(b"broken")
  return folder


def look(folder, kept, advance=lambda done: None):
  source = sources.make(f"folder:{folder}")
  readable = np.ones(len(source), bool)
  readable[1] = False
  return facts.look(source, readable, num_threads=2, kept=kept, advance=advance)


def test_every_file_is_looked_at_once(folder, tmp_path, monkeypatch):
  kept = tmp_path / "features" / "facts.parquet"
  told = []
  first = look(folder, kept, told.append)
  assert told == [1, 6]
  assert first["width"].to_pylist() == [5, None, 7, None, 9, 10]
  digest = hashlib.sha256((folder / "2.png").read_bytes()).hexdigest()
  assert first["sha256"][2].as_py() == digest
  read = []
  of_image = facts.of_image

  def noted(image):
    read.append(image)
    return of_image(image)

  monkeypatch.setattr(facts, "of_image", noted)
  # The broken one is asked again: a disk may have been away.
  assert look(folder, kept) == first
  assert read == [b"broken"]
  # Another file of an old name, and a new one in front of all others.
  (folder / "4.png").write_bytes(encoded(np.zeros((4, 50))))
  os.utime(folder / "4.png", ns=(1, 1))
  (folder / "0.jpg").write_bytes(encoded(np.zeros((4, 60)), "JPEG"))
  del read[:]
  found = look(folder, kept)["width"].to_pylist()
  assert found == [60, 5, 6, 7, None, 50, 10]
  assert len(read) == 4  # these, that which is now to be read, and the broken
  # What is kept is not to be relied on where it is no such file.
  kept.write_bytes(b"damaged")
  found[1] = None  # not readable, and no longer known either
  assert look(folder, kept)["width"].to_pylist() == found
  assert look(folder, None)["width"].to_pylist() == found
