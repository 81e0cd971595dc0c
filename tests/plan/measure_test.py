"""What a plan says, against sizes worked out by hand."""

import json
import math
import types

import jax
import pytest

from configs import odc_digits, odc_folder, odc_imagenet
from odc_jax import mesh as mesh_lib
from odc_jax.config import check as config_lib
from odc_jax.errors import UserError
from odc_jax.methods import METHODS
from odc_jax.plan import chips, measure, sizes
from odc_jax.training.programs import assemble
from tests.program import assert_refused, run

pytestmark = pytest.mark.optimized

MIB = 2**20


def digits(**overrides):
  config = odc_digits.get_config("quick")
  config.update_from_flattened_dict(
    {"model.width": 8, "batch_size": 64, "num_clusters": 32, **overrides}
  )
  return config


@pytest.fixture(scope="module")
def planned():
  """Of a million images on eight devices."""
  config = digits(num_epochs=3)
  return measure.run(config, num_examples=10**6, images_per_second=1000.0)


def test_bytes_of_each_part(planned):
  rows = 1_000_448 // 8  # padded to a multiple of 1,024
  parts = planned["parts"]
  assert planned["devices"] == 8
  assert parts["sample memory"] == rows * (256 * 4 + 2 * 4)
  # And how many clusters the epoch has dissolved.
  assert parts["centroid memory"] == 2 * 32 * 256 * 4 + 32 * 4 + 4
  side = digits().data.image_size
  assert parts["batches"] == 3 * 64 // 8 * (side**2 * 3 + 4)
  # Momentum for all but the head, which has none; and the number of the step.
  head = 4 * (256 * 32 + 32)
  assert 0 <= parts["optimizer"] - (parts["parameters"] - head) < 64
  phases = planned["phases"]
  state = sum(parts.values()) - parts["batches"]
  assert all(phase["state"] == state for phase in phases.values())
  width = 8 * 8 * digits().model.width // 8
  assert phases["extraction"]["features of all images"] % (4 * rows) == 0
  assert phases["extraction"]["features of all images"] > 4 * rows * width


def test_the_number_of_parameters_is_that_of_their_bytes(planned):
  counts = planned["num_parameters"]
  assert counts["head"] == 256 * 32 + 32
  assert 4 * sum(counts.values()) == planned["parts"]["parameters"]


def test_what_the_compiler_says(planned):
  step = planned["programs"]["step"]
  parts = planned["parts"]
  # The memory is written over; the rest is what the network needs.
  assert step["in_place"] >= parts["sample memory"]
  assert step["temporaries"] < parts["sample memory"]
  assert planned["phases"]["training"]["step"] == (
    step["results"] - step["in_place"] + step["temporaries"] + step["code"]
  )
  assert step["flops"] > 0
  shapes = {shape for _, shape, _, _ in step["collectives"]}
  assert "f32[32,256]" in shapes
  clustering = planned["programs"]["clustering"]
  assert clustering["results"] > parts["sample memory"]


def test_steps_and_hours(planned):
  assert planned["steps_per_epoch"] == 15_625
  assert planned["steps"] == 3 * 15_625
  assert planned["hours"] == pytest.approx(3 * 15_625 * 64 / 1000 / 3600)
  # A CPU says neither what it can hold nor what it can compute.
  assert planned["fits"] is None
  assert "xla_step_ms" not in planned


def test_memory_of_the_host():
  config = config_lib.resolve(odc_imagenet.get_config(), 1_281_167, 8)
  host = sizes.host_bytes(config, 123, num_processes=2)
  image = 224 * 224 * 3
  # 16 threads, 16 batches ahead; three more on their way to the devices.
  assert host["training batches"] == 19 * 256 * image
  assert host["evaluation batches"] == 16 * 256 * image
  assert host["clusters, twice"] == 8 * 1_281_167
  assert host["a checkpoint"] == 123
  # Each of 8 workers has 16 ahead of its own, and two more to hand over.
  config.data.num_workers = 8
  host = sizes.host_bytes(config, 123, num_processes=2)
  assert host["training batches"] == (8 * 16 + 16 + 3) * 256 * image


class Device(types.SimpleNamespace):
  """What a device says of itself."""

  def memory_stats(self):
    if self.stats is None:
      raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: not addressable")
    return self.stats


def test_the_device_is_asked_before_the_table():
  absent = Device(device_kind="TPU v5 lite", stats=None)
  assert chips.device_limits(absent) == (
    15.75 * 2**30,
    "from a table",
    197e12,
  )
  present = Device(device_kind="TPU v5 lite", stats={"bytes_limit": 5})
  assert chips.device_limits(present) == (5, "says the device", 197e12)
  gpu = Device(device_kind="NVIDIA H200", stats={"bytes_limit": 7})
  assert chips.device_limits(gpu) == (7, "says the device", None)
  assert chips.device_limits(jax.devices()[0])[0] is None


USAGE = measure.Usage(0, 0, 0, 0, 0, 2e9, math.nan, [])


@pytest.mark.parametrize(
  ("seconds", "sane"), [(-93.9, False), (0.0005, False), (0.004, True)]
)
def test_an_estimate_below_the_arithmetic_is_not_printed(seconds, sane, capsys):
  config = config_lib.resolve(odc_imagenet.get_config(), 1_281_167, 8)
  usage = USAGE._replace(seconds=seconds)
  found = measure._times(config, {"step": usage}, 1000, 1e12, 0.0)
  assert found["least_step_ms"] == pytest.approx(2.0)
  assert found.get("xla_step_ms") == (4.0 if sane else None)
  assert ("XLA expects 4.0 ms" in capsys.readouterr().out) == sane


def test_what_does_not_fit_is_told_with_the_compilers_words(
  monkeypatch, capsys
):
  words = "Ran out of memory on HBM, 18.64G exceeds available HBM (15.75G)."

  def too_large():
    raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {words}\nand more")

  monkeypatch.setattr(measure, "lowered", lambda *args: {"step": too_large})
  result = measure.run(digits(num_epochs=1), num_examples=2000)
  assert result["fits"] is False
  assert result["too_large"] == {"step": words}
  out = capsys.readouterr().out
  assert "DOES NOT FIT" in out
  assert json.loads(out.splitlines()[-1])["fits"] is False

  def broken():
    raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

  monkeypatch.setattr(measure, "lowered", lambda *args: {"step": broken})
  with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
    measure.run(digits(num_epochs=1), num_examples=2000)


def test_more_than_a_device_has_does_not_fit(monkeypatch, capsys):
  monkeypatch.setattr(measure, "lowered", lambda *args: {"step": None})
  usage = USAGE._replace(temporaries=2 * MIB)
  monkeypatch.setattr(measure, "measure", lambda lower: usage)
  for limit, fits in ((1 * MIB, False), (2**40, True)):
    monkeypatch.setattr(
      measure, "device_limits", lambda device, limit=limit: (limit, "", None)
    )
    result = measure.run(digits(num_epochs=1), num_examples=2000)
    assert result["fits"] is fits
    assert ("DOES NOT FIT" in capsys.readouterr().out) is not fits


def test_six_devices_cannot_share_the_rows():
  mesh = mesh_lib.make_mesh(6)
  config = config_lib.resolve(
    odc_imagenet.get_config().copy_and_resolve_references(), 1_281_167, 1
  )
  with jax.set_mesh(mesh), pytest.raises(UserError, match="1,282,048 rows"):
    assemble(config, METHODS[config.method], mesh)


def test_more_rows_than_can_be_numbered():
  config = config_lib.resolve(odc_imagenet.get_config(), 2**31 - 1023, 8)
  mesh = mesh_lib.make_mesh(8)
  with jax.set_mesh(mesh), pytest.raises(UserError, match="int32"):
    assemble(config, METHODS[config.method], mesh)


def test_wrong_numbers():
  with pytest.raises(UserError, match="at least 0"):
    measure.run(digits(), num_examples=-1)
  with pytest.raises(UserError, match="cannot be split over 8 devices"):
    measure.run(digits(batch_size=12), num_examples=2000)


PLAN = [
  "--config=configs/odc_digits.py:quick",
  "--mode=plan",
  "--config.model.width=8",
]


@pytest.mark.slow
def test_the_command(environment, tmp_path):
  """On one CPU device; the data set is opened to count its images."""
  status, out, err = run(environment, tmp_path / "run", *PLAN)
  assert status == 0, err
  assert err == ""
  assert "1,797 images" in out
  assert json.loads(out.splitlines()[-1])["num_examples"] == 1797
  assert not (tmp_path / "run").exists()


def test_without_libtpu_the_remedy_is_told(environment, tmp_path):
  environment = {**environment, "TPU_LIBRARY_PATH": str(tmp_path / "none.so")}
  result = run(environment, tmp_path, *PLAN, "--topology=v5e:2x4")
  assert_refused(result, "libtpu", "pip install -e '.[plan]'")


def test_a_plans_flag_without_the_mode_starts_no_training(
  environment, tmp_path
):
  result = run(environment, tmp_path / "run", PLAN[0], "--topology=v5e:2x4")
  assert_refused(result, "--topology", "--mode=plan")
  assert not (tmp_path / "run").exists()


def frozen(**overrides):
  """Of photographs, with a small network in place of theirs."""
  config = odc_folder.get_config("quick")
  with config.ignore_type(), config.unlocked():
    config.update_from_flattened_dict(
      {
        "data.image_size": 32,
        "data.eval_resize": 36,
        "data.interpolation": "bilinear",
        "augment.mean": (0.5, 0.5, 0.5),
        "augment.std": (0.2, 0.2, 0.2),
        "model.name": "resnet18",
        "model.width": 8,
        "model.weights": "",
        # Without weights it would be trained.
        "model.train": "head",
        "model.neck": "none",
        "model.embedding_dim": 64,
        "eval.batch_size": 48,
        "num_clusters": 32,
        "batch_size": 64,
        **overrides,
      }
    )
  return config


@pytest.fixture(scope="module")
def planned_frozen():
  return measure.run(frozen(), num_examples=10**6, images_per_second=1000.0)


def test_a_frozen_backbone_sees_the_images_once(planned_frozen):
  plan = planned_frozen
  programs, phases = plan["programs"], plan["phases"]
  assert [*programs] == ["features", "embeddings", "step", "clustering"]
  assert [*phases] == [
    *("features", "embeddings", "training", "clustering", "kNN, estimated"),
  ]
  rows, width = 1_000_448 // 8, 64
  kept = rows * (4 * width + 256)
  assert plan["parts"]["features of all images"] == kept
  assert plan["parts"]["batches"] == 3 * 64 // 8 * 4
  state = sum(plan["parts"].values()) - plan["parts"]["batches"] - kept
  for name, phase in phases.items():
    assert phase["state"] == state
    assert phase.get("features of all images", 0) == kept * (name != "features")
  # Features of a batch are all that leaves the first; and every image's
  # features are an argument of the step, which makes no second copy.
  assert programs["features"]["results"] < 1.1 * 48 * (4 * width + 256)
  assert programs["step"]["arguments"] > rows * 4 * width
  assert programs["step"]["temporaries"] < rows * 4 * width
  assert programs["embeddings"]["results"] == rows * 4 * width
  assert phases["clustering"]["embeddings of all images"] == rows * 4 * width
  assert plan["hours"] == pytest.approx(10**6 / 1000 / 3600)
  batches = -(-(10**6) // 48)
  flops = programs["features"]["flops"]
  assert plan["pass_flops_per_device"] == batches * flops


def test_disk_and_host_of_a_frozen_backbone(planned_frozen):
  n, width = 10**6, 64
  disk = planned_frozen["disk"]
  assert disk["features"] == n * 4 * width
  assert disk["thumbnails"] == n * 256
  assert disk["labels"] == n * 4
  kept = planned_frozen["parts"]["features of all images"]
  host = planned_frozen["host"]
  assert host["features on their way"] == 8 * kept
  # Numbers, and no pixels.
  assert host["training batches"] < 64 * 4 * 100


def test_nothing_is_kept_of_a_backbone_that_learns(planned):
  assert planned["disk"] == {}
  assert "features on their way" not in planned["host"]
  assert "features of all images" not in planned["parts"]


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({}, ""),
    ({"batch_size": 4096}, "would be 0.48, --config.optimizer.learning_rate"),
    ({"batch_size": 4096, "optimizer.learning_rate": 0.48}, ""),
    ({"optimizer.learning_rate": 0.48}, ""),
  ],
  ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
)
def test_a_batch_size_that_has_kept_its_rate_is_named(changes, says):
  """0.06 at 512, in proportion 0.48 at 4,096."""
  config = odc_imagenet.get_config()
  config.update_from_flattened_dict(changes)
  found = measure.rate_advice(config, odc_imagenet.get_config())
  assert bool(found) == bool(says)
  assert says in "".join(found)


def test_a_batch_size_that_follows_from_the_data_has_no_rate_of_its_own():
  config = odc_folder.get_config()
  config.batch_size = "64"
  assert not measure.rate_advice(config, odc_folder.get_config())
