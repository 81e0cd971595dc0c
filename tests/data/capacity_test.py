"""Whether images fit onto the devices."""

import numpy as np
import pytest
from PIL import Image

from odc_jax import mesh as mesh_lib
from odc_jax.data import capacity, sources
from odc_jax.errors import UserError

GB = 10**9


@pytest.mark.parametrize(
  ("wanted", "n", "longest", "size", "devices", "memory", "expected"),
  [
    # CIFAR-10, STL-10: nowhere a quarter.
    ("auto", 50_000, 32, 32, 1, 8 * GB, (32, 115)),
    ("auto", 100_000, 96, 64, 1, 16 * GB, (96, 115)),
    # At most four times the crop, however much room there is.
    ("auto", 1_000, 96, 16, 8, 80 * GB, (0, 0)),
    ("images", 1_000, 96, 16, 8, 80 * GB, (64, 64)),
    # 1,282,048 rows: 80 GB / 4 are 72 x 72, of eight devices 203 x 203.
    ("auto", 1_281_167, 64, 64, 1, 80 * GB, (64, 72)),
    ("auto", 1_281_167, 96, 64, 1, 80 * GB, (0, 0)),
    ("auto", 1_281_167, 96, 64, 8, 80 * GB, (96, 203)),
    # In a half: 101 x 101.
    ("images", 1_281_167, 500, 64, 1, 80 * GB, (101, 101)),
    ("auto", 10, 0, 8, 1, GB, (0, 0)),
    ("auto", 10, 8, 8, 1, None, (0, 0)),
  ],
)
def test_what_fits_by_hand(wanted, n, longest, size, devices, memory, expected):
  choice = capacity.choose(wanted, n, longest, size, devices, memory)
  assert choice[:2] == expected
  assert ("= images" in choice.why) == bool(choice.side)
  assert "\n" not in choice.why
  share = {"auto": 1 / 4, "images": 1 / 2}.get(wanted, 0)
  rows = mesh_lib.padded_rows(n)
  # What an image needs at most fits too.
  assert 3 * rows * choice.most**2 <= share * devices * (memory or 0)


def test_the_line_says_bytes_and_share():
  line = capacity.choose("auto", 50_000, 32, 32, 2, 8 * GB).why
  assert line == (
    "data.resident = images: 50,000 of 32 x 32 pixels, 78 MB on each of 2 "
    "devices, 1.0% of its memory"
  )
  line = capacity.choose("images", 2_000, 4_000, 64, 1, 8 * GB).why
  assert "2,000 of 256 x 256 pixels, made smaller from 4000, " in line
  assert "403 MB on the device, 5.0% of its memory" in line
  line = capacity.choose("auto", 2_000, 4_000, 64, 1, 8 * GB).why
  assert "up to 4000 pixels" in line
  assert "up to 256" in line


@pytest.mark.parametrize(
  ("arguments", "says"),
  [
    (("yes", 10, 8, 8, 1, GB), "unknown data.resident 'yes'"),
    (("images", 10**6, 500, 224, 1, GB), "at most, fewer than data.image_size"),
    (("images", 10, 0, 8, 1, GB), "any image is not to be known"),
    (("images", 10, 8, 8, 1, None), "memory is not to be known"),
  ],
)
def test_what_cannot_be_is_said(arguments, says):
  with pytest.raises(UserError, match=says):
    capacity.choose(*arguments)


def test_the_longest_side_of_images_as_a_person_sees_them(tmp_path):
  rng = np.random.default_rng(0)
  for i in range(6):
    image = Image.fromarray(rng.integers(0, 256, (9, 5 + i, 3), np.uint8))
    image.save(tmp_path / f"{i}.png")
  (tmp_path / "3.png").write_text("no image")
  source = sources.make(f"folder:{tmp_path}")
  assert capacity.longest_side(source) == 10
  for path in tmp_path.iterdir():
    path.unlink()
  assert capacity.longest_side(source) == 0


def test_devices_of_a_cpu_share_its_memory():
  one, all_ = mesh_lib.make_mesh(1), mesh_lib.make_mesh()
  whole = capacity.device_bytes(one)
  assert whole is not None
  assert 2**28 < whole < 2**50
  assert capacity.device_bytes(all_) == whole // all_.size


def test_what_is_decided_for_two_data_sets():
  mesh = mesh_lib.make_mesh(1)
  digits = sources.make("digits")
  assert capacity.decide("off", [digits], 8, mesh) == (0, 0, "")
  choice = capacity.decide("auto", [digits, digits], 8, mesh)
  assert choice[:2] == (8, 32)
  assert choice.why.startswith("data.resident = images: 3,594 of 8 x 8 pixels")
