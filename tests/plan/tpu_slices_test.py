"""Slices that there are and slices that there are not."""

import pytest

from odc_jax.errors import UserError
from odc_jax.plan import tpu_slices

needs_libtpu = pytest.mark.skipif(
  not tpu_slices.is_installed(), reason="libtpu is not installed"
)


def test_a_library_that_is_not_there(monkeypatch, tmp_path):
  monkeypatch.setenv("TPU_LIBRARY_PATH", str(tmp_path / "libtpu.so"))
  assert not tpu_slices.is_installed()
  with pytest.raises(UserError, match=r"libtpu.*pip install"):
    tpu_slices.devices("v5e:2x4")
  (tmp_path / "libtpu.so").touch()
  assert tpu_slices.is_installed()


@needs_libtpu
@pytest.mark.parametrize(
  ("name", "num_devices", "num_processes"),
  [("v5e:2x4", 8, 2), ("v4:4x4x4", 64, 16), ("tpu7x:2x2x1", 8, 1)],
)
def test_devices_of_a_slice(name, num_devices, num_processes):
  tpu_slices.prepare_environment()
  devices = tpu_slices.devices(name)
  assert len(devices) == num_devices
  assert len({device.process_index for device in devices}) == num_processes


@needs_libtpu
@pytest.mark.parametrize("name", ["v5e:3x5", "v9:2x2", "v5e", "h100:8"])
def test_a_slice_that_does_not_exist(name):
  tpu_slices.prepare_environment()
  with pytest.raises(UserError, match=rf"^--topology={name}: .*v5e:16x16") as e:
    tpu_slices.devices(name)
  assert "\n" not in str(e.value)
