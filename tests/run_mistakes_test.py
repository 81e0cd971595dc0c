"""Mistakes: exit status 2 and one line with the value and the remedy."""

import shlex

import pytest

from odc_jax import UserError
from tests.program import assert_refused, run, run_here

# ml_collections loads a config by a method that Python deprecates.
pytestmark = pytest.mark.filterwarnings(
  "ignore:the load_module:DeprecationWarning"
)

QUICK = "--config=configs/odc_digits.py:quick"


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    ([], ["--config=configs/odc_digits.py"]),
    (["--config=configs/missing.py"], ["configs/missing.py"]),
    (["--config=configs/odc_digits.py:slow"], ["'slow'", ":quick"]),
    ([QUICK, "--config.odc.momentun=0.5"], ["config.odc.momentun"]),
    ([QUICK, "--config.num_clusters=many"], ["config.num_clusters=many"]),
    ([QUICK, "--wrkdir=x"], ["wrkdir"]),
    ([QUICK, "train"], ["'train'"]),
    (
      [QUICK, "--config.num_clusters=2000"],
      ["num_clusters=2000", "1797 images", "--config.num_clusters="],
    ),
    (
      [QUICK, "--config.batch_size=4096"],
      ["batch_size=4096", "1797 images", "--config.batch_size"],
    ),
    ([QUICK, "--config.batch_size=0"], ["batch_size=0 is less than 1"]),
    ([QUICK, "--config.log_every=0"], ["log_every=0 is less than 1"]),
    (
      [QUICK, "--config.data.crop_scale=(0.5,0.2)"],
      ["data.crop_scale=(0.5, 0.2)", "--config.data.crop_scale=(a,b)"],
    ),
    ([QUICK, "--config.model.group_size=7"], ["group_size=7"]),
    ([QUICK, "--config.model.name=resnet19"], ["resnet19", "resnet18"]),
    (
      [QUICK, "--config.model.weights=/nowhere/weights.pth"],
      ["/nowhere/weights.pth", "--config.model.weights="],
    ),
    ([QUICK, "--config.method=odd"], ["'odd'", "odc"]),
    ([QUICK, "--config.odc.assign_metric=l1"], ["'l1'", "cosine"]),
    ([QUICK, "--config.odc.kmeans_init=best"], ["'best'", "k-means++"]),
    ([QUICK, "--config.odc.memory_dtype=int8"], ["'int8'", "bfloat16"]),
    ([QUICK, "--config.data.sampling=bag"], ["'bag'", "replacement"]),
    ([QUICK, "--config.data.on_error=ignore"], ["'ignore'", "replace or fail"]),
    ([QUICK, "--config.data.source=folder:/nowhere"], ["/nowhere"]),
    (
      [QUICK, "--config.data.source=folder:"],
      ["--config.data.source=folder:/your/images"],
    ),
    ([QUICK, "--config.data.source=mnist"], ["mnist", "digits"]),
    (
      [QUICK, "--config.augment.blur_sigma=(0.5,1.0)"],
      ["augment.blur_sigma=(0.5, 1.0)", "augment.blur=0.0"],
    ),
  ],
  ids=lambda value: (value or ["nothing"])[-1],
)
def test_mistakes_are_answered_in_one_line(tmp_path, monkeypatch, flags, words):
  workdir = tmp_path / "run"
  with pytest.raises(UserError) as refused:
    run_here(monkeypatch, f"--workdir={workdir}", *flags)
  assert "\n" not in str(refused.value)
  for word in words:
    assert word in str(refused.value)
  assert not workdir.exists()


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    # One of each layer: a flag, the file, a key, a value, the data.
    ("--wrkdir=x", ["wrkdir"]),
    ("--config=configs/missing.py", ["configs/missing.py"]),
    (f"{QUICK} --config.odc.momentun=0.5", ["config.odc.momentun"]),
    (f"{QUICK} --config.batch_size=4096", ["batch_size=4096", "1797 images"]),
    (f"{QUICK} --config.data.source=folder:/nowhere", ["/nowhere"]),
  ],
)
def test_the_program_says_so_and_ends_with_2(
  environment, tmp_path, flags, words
):
  workdir = tmp_path / "run"
  assert_refused(run(environment, workdir, *shlex.split(flags)), *words)
  assert not workdir.exists()


def test_a_work_directory_that_cannot_be_one_is_refused(environment, tmp_path):
  path = tmp_path / "file"
  path.write_text("I was here first")
  assert_refused(run(environment, path, QUICK), str(path), "--workdir")
  assert path.read_text() == "I was here first"


def test_imagenet_that_is_not_prepared_comes_with_the_steps(
  environment, tmp_path
):
  status, _, err = run(
    {**environment, "TFDS_DATA_DIR": str(tmp_path)},
    tmp_path / "run",
    "--config=configs/odc_imagenet.py",
  )
  assert status == 2
  assert "Traceback" not in err
  for word in (
    "ILSVRC2012_img_train.tar",
    "ILSVRC2012_img_val.tar",
    f"python -m odc_jax.data.prepare imagenet2012 --data_dir={tmp_path} "
    "--manual_dir=/path/to/tars",
  ):
    assert word in err
