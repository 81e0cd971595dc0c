"""What counts as an accelerator, and what JAX is told."""

import pytest

from odc_jax.distributed.platforms import accelerator, choose, count_gpus


@pytest.fixture
def machine(tmp_path):
  """Makes a machine's /dev and /sys/bus out of names."""

  def make(*files, vendor="0x8086"):
    for file in files:
      path = tmp_path / "dev" / file
      path.parent.mkdir(parents=True, exist_ok=True)
      path.touch()
    card = tmp_path / "bus" / "pci" / "devices" / "0000:00:04.0"
    card.mkdir(parents=True)
    (card / "vendor").write_text(vendor + "\n")
    return tmp_path / "dev", tmp_path / "bus"

  return make


GPUS = ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-modeset")


@pytest.mark.parametrize(
  ("chosen", "number"),
  [
    (None, 2),
    ("", 0),
    ("-1", 0),
    ("NoDevFiles", 0),
    ("3", 1),
    ("0, 1,2", 3),
    ("0,-1,2", 1),
    ("GPU-8932f937,MIG-GPU-8932/1/0", 2),
  ],
)
def test_gpus_are_counted(machine, chosen, number):
  dev, _ = machine(*GPUS)
  environ = {} if chosen is None else {"CUDA_VISIBLE_DEVICES": chosen}
  assert count_gpus(environ, dev) == number


@pytest.mark.parametrize(
  "files",
  [
    (),
    ("dri/card0", "kvm", "vfio/vfio"),  # any laptop
    ("dxg",),  # Windows' subsystem, with whatever graphics
    ("kfd",),  # AMD, also in a processor
    ("accel/accel0",),  # Intel's NPU
    ("vfio/vfio", "vfio/12"),  # a card handed to a virtual machine
    ("nvidiactl",),
  ],
)
def test_a_laptop_is_no_accelerator(machine, files):
  dev, bus = machine(*files)
  assert accelerator({}, dev, bus) is None


@pytest.mark.parametrize(
  ("files", "vendor", "environ", "named"),
  [
    (GPUS, "0x10de", {}, "nvidia*"),
    (("accel0", "accel1"), "0x1ae0", {}, "accel"),
    (("vfio/vfio", "vfio/0"), "0x1ae0", {}, "vfio/0"),
    ((), "", {"CUDA_VISIBLE_DEVICES": "0,1"}, "CUDA_VISIBLE_DEVICES=0,1"),
    ((), "", {"SLURM_STEP_GPUS": "2,3"}, "SLURM_STEP_GPUS=2,3"),
    ((), "", {"SLURM_GPUS_ON_NODE": "4"}, "SLURM_GPUS_ON_NODE=4"),
  ],
)
def test_an_accelerator_is_named(machine, files, vendor, environ, named):
  dev, bus = machine(*files, vendor=vendor)
  assert named in accelerator(environ, dev, bus)


@pytest.mark.parametrize(
  "environ",
  [
    {"CUDA_VISIBLE_DEVICES": ""},
    {"CUDA_VISIBLE_DEVICES": "-1", "SLURM_GPUS_ON_NODE": "4"},
  ],
)
def test_hidden_gpus_are_not_there(machine, environ):
  dev, bus = machine(*GPUS)
  assert accelerator(environ, dev, bus) is None


@pytest.mark.parametrize(
  ("platform", "configured", "evidence", "num_gpus", "libtpu", "expected"),
  [
    ("auto", None, None, 0, False, None),
    ("auto", None, "/dev/nvidia*", 2, False, None),
    # libtpu would look for a TPU, in vain and loudly.
    ("auto", None, None, 0, True, "cpu"),
    ("auto", None, "/dev/nvidia*", 2, True, "cuda,cpu"),
    ("auto", None, "/dev/accel0", 0, True, None),
    ("auto", "tpu,cpu", None, 0, True, None),
    ("cpu", "cuda", "/dev/nvidia*", 2, True, "cpu"),
    ("tpu", None, None, 0, False, "tpu,cpu"),
    ("gpu", None, None, 0, False, "cuda,cpu"),
    ("gpu", "cpu", None, 0, False, "cuda,cpu"),
    ("gpu", "rocm,cpu", None, 0, False, "rocm,cpu"),
  ],
)
def test_what_jax_is_told(
  platform, configured, evidence, num_gpus, libtpu, expected
):
  chosen = choose(platform, configured, evidence, num_gpus, libtpu)
  assert chosen == expected
