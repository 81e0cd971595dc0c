"""Signs of collapse, each by hand; runs that collapse are in run_test.py."""

import importlib
import json
import math
import re

import pytest

from odc_jax.logs import health
from odc_jax.logs import scalars as scalars_lib
from odc_jax.logs import writer as writer_lib
from odc_jax.methods import METHODS

# 10 clusters of 1,000 images: ln K = 2.303.
K, N = 10, 1000
# A run in which all is well: a log line, and what an epoch's end adds.
STEP = {
  "train/loss": 1.5,
  "train/cluster_accuracy": 0.5,
  "train/embedding_std": 0.9,
  "cluster/entropy": 2.2,
  "cluster/max_size": 150,
  "cluster/empty": 0,
  "cluster/label_change": 0.1,
  "cluster/dissolved_epoch": 1,
}
EPOCH_END = {
  "cluster/nmi_previous": 0.9,
  "cluster/max_size": 150,
  "cluster/empty": 0,
  "cluster/dissolved_epoch": 2,
}


def lines(num_epochs, **scalars):
  """Yields the log of a run of 10 steps an epoch, a line every 5.

  Args:
    num_epochs: Its length.
    scalars: What is always otherwise, by the second half of its name.
  """
  changed = {
    name: scalars[name.split("/")[1]]
    for name in {**STEP, **EPOCH_END}
    if name.split("/")[1] in scalars
  }
  for step in range(5, 10 * num_epochs + 1, 5):
    kinds = [STEP] + [EPOCH_END] * (step % 10 == 0)
    for usual in kinds:
      line = {name: changed.get(name, usual[name]) for name in usual}
      yield {"step": step, "epoch": step / 10, **line}


def findings(log):
  judge = health.Health(K, N, METHODS["odc"].ADVICE, ()).judge
  return [finding for line in log for finding in judge(line)]


def test_nothing_is_wrong_with_a_healthy_run():
  assert findings(lines(20)) == []


@pytest.mark.parametrize(
  ("sign", "scalars", "step", "words"),
  [
    # The third line behind epoch 1.
    (
      "embeddings",
      {"embedding_std": 0.29},
      25,
      ["embedding_std is 0.29, below 0.3", "optimizer.learning_rate"],
    ),
    (
      "sizes",
      {"entropy": 1.72},
      25,
      ["entropy is 1.72, below 1.73", "ln K of 10 clusters", "min_cluster"],
    ),
    # On an epoch's end there are two lines.
    (
      "largest",
      {"max_size": 501},
      20,
      ["max_size is 501, 50% of the images, above 50%", "reweight_power"],
    ),
    (
      "empty",
      {"empty": 2},
      20,
      ["empty is 2 of 10 clusters, above 10%", "odc.min_cluster"],
    ),
    # At the ends of epochs 2 and 3.
    (
      "dissolved",
      {"dissolved_epoch": 16},
      30,
      ["dissolved_epoch is 16, above 15 (0.5 of 10 clusters", "two epochs"],
    ),
    # Nine in ten random labels change; behind epoch 2.
    (
      "restless",
      {"label_change": 0.73},
      35,
      ["label_change is 0.73, above 0.72", "odc.momentum"],
    ),
    (
      "frozen",
      {"nmi_previous": 0.99995},
      30,
      ["nmi_previous is 0.99995, above 0.9999", "odc.momentum"],
    ),
    (
      "trivial",
      {"label_change": 0.0, "loss": 0.11},
      25,
      ["label_change is 0 and train/loss is 0.11, below 0.115"],
    ),
    # ln 10 = 2.303; behind epoch 5.
    (
      "chance",
      {"loss": 2.24},
      65,
      ["train/loss is 2.24, above 2.23", "guessing", "weight_decay"],
    ),
  ],
  ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_sign_is_found_once(sign, scalars, step, words):
  (finding,) = findings(lines(12, **scalars))
  assert (finding.sign, finding.step) == (sign, step)
  assert finding.epoch == step / 10
  assert "\n" not in finding.text
  for word in [*words, "Likely cause", "--workdir"]:
    assert word in finding.text


@pytest.mark.parametrize(
  "scalars",
  [
    {"embedding_std": 0.31},
    {"entropy": 1.73},
    {"max_size": 500},
    {"empty": 1},
    {"dissolved_epoch": 15},
    {"label_change": 0.71},
    {"nmi_previous": 0.9995},
    # By heart, but labels still change; and the other way round.
    {"label_change": 0.01, "loss": 0.01},
    {"label_change": 0.0, "loss": 0.12},
    {"loss": 2.23},
  ],
  ids=str,
)
def test_no_sign_on_the_right_side_of_its_threshold(scalars):
  assert findings(lines(12, **scalars)) == []


def test_every_sign_is_tested_above():
  (mark,) = test_each_sign_is_found_once.pytestmark
  assert [case[0] for case in mark.args[1]] == list(health.SIGNS)


def test_nothing_is_judged_in_the_first_epoch():
  sick = {"embedding_std": 0.01, "entropy": 0.1, "max_size": 999, "empty": 9}
  assert findings(lines(1, **sick)) == []
  # A log line every step: many of them, and still the first epoch.
  judge = health.Health(K, N, METHODS["odc"].ADVICE, ()).judge
  for step in range(1, 101):
    line = {"step": step, "epoch": step / 100, "train/embedding_std": 0.01}
    assert judge(line) == []


def test_what_stands_still_late_in_a_run_may_be_done():
  late = [line for line in lines(40) if line["epoch"] <= 10]
  still = lines(40, nmi_previous=1.0, label_change=0.0, loss=0.01)
  late += [line for line in still if line["epoch"] > 10]
  assert findings(late) == []


def test_two_clusters_may_share_the_images_unevenly():
  judge = health.Health(2, N, {}, ()).judge

  def found(size):
    share = size / N
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    sizes = {"cluster/max_size": size, "cluster/entropy": entropy}
    return [
      finding.sign
      for step in range(20, 25)
      for finding in judge({"step": step, "epoch": step / 10, **sizes})
    ]

  assert found(740) == []
  assert found(800) == ["sizes", "largest"]


def std_of(*values):
  """Yields log lines behind the first epoch with these embedding_std."""
  for i, value in enumerate(values):
    yield {"step": 20 + i, "epoch": 2.0 + i, "train/embedding_std": value}


def test_one_line_alone_is_never_enough():
  assert findings(std_of(0.1, 0.1, 0.9, 0.1, 0.1, 0.9, 0.1)) == []


def test_a_sign_is_found_again_once_it_was_over():
  bad, good = [0.1] * 3, [0.9] * 3
  found = [x.step for x in findings(std_of(*bad, *bad, *good, *bad))]
  assert found == [22, 31]
  # Good lines here and there do not end it.
  found = [x.step for x in findings(std_of(*bad, 0.9, 0.9, *bad, 0.9, *bad))]
  assert found == [22]


def test_a_line_without_the_scalars_says_nothing():
  log = []
  for line in std_of(0.1, 0.1, 0.1):
    log += [line, {"step": line["step"], "epoch": 2.0, "eval/knn_top1": 0.1}]
  assert [finding.sign for finding in findings(log)] == ["embeddings"]


@pytest.mark.parametrize("method", METHODS)
def test_the_advice_names_keys_that_exist(method):
  module = importlib.import_module(f"configs.{method}_digits")
  config = module.get_config()
  named = set()
  for name, sign in health.SIGNS.items():
    advice = METHODS[method].ADVICE.get(name, sign.advice)
    named |= set(re.findall(r"\b[a-z_]+\.[a-z_]+\b", advice))
    for scalar in sign.scalars:
      assert scalar in scalars_lib.SCALARS
  assert named
  for name in named:
    section, key = name.split(".")
    assert key in config[section], name


def write(workdir, log, resumed_at=None):
  """Writes a log as a run does that ends, or dies, with its last line."""
  writer = writer_lib.MetricWriter(
    workdir, resumed_at, 200, health.Health(K, N, METHODS["odc"].ADVICE, ())
  )
  for line in log:
    scalars = {name: value for name, value in line.items() if "/" in name}
    writer.write(line["step"], line["epoch"], scalars)
  writer.close()


SICK = {"embedding_std": 0.1, "label_change": 0.8}


def test_a_warning_is_printed_and_kept(tmp_path, capsys):
  write(tmp_path, lines(5, **SICK))
  kept = [
    json.loads(line)
    for line in (tmp_path / "warnings.jsonl").read_text().splitlines()
  ]
  assert [(x["step"], x["epoch"], x["sign"]) for x in kept] == [
    (25, 2.5, "embeddings"),
    (35, 3.5, "restless"),
  ]
  assert capsys.readouterr().err.splitlines() == [
    f"warning: step {x['step']}: {x['text']}" for x in kept
  ]


def test_a_healthy_run_leaves_no_warnings(tmp_path, capsys):
  # Not even those of the run that was here before.
  (tmp_path / "warnings.jsonl").write_text('{"sign": "old"}\n')
  write(tmp_path, lines(5))
  assert not (tmp_path / "warnings.jsonl").exists()
  assert capsys.readouterr().err == ""


@pytest.mark.parametrize("killed_at", range(5, 90, 5))
def test_a_run_that_goes_on_has_the_same_warnings(tmp_path, capsys, killed_at):
  """Killed at any line; the last checkpoint is of the epoch before."""
  # Over in epochs 6 and 7, and back in epoch 8.
  log = [
    line if 5 < line["epoch"] <= 7 else sick_line
    for line, sick_line in zip(lines(9), lines(9, **SICK), strict=True)
  ]
  (tmp_path / "whole").mkdir()
  write(tmp_path / "whole", log)
  expected = (tmp_path / "whole" / "warnings.jsonl").read_text()
  whole_err = capsys.readouterr().err
  assert whole_err.count("warning: ") == 4

  workdir = tmp_path / "killed"
  workdir.mkdir()
  write(workdir, [line for line in log if line["step"] <= killed_at])
  checkpoint = killed_at // 10 * 10
  capsys.readouterr()
  write(
    workdir,
    [line for line in log if line["step"] > checkpoint],
    resumed_at=checkpoint,
  )
  assert (workdir / "warnings.jsonl").read_text() == expected
  # What was found before is not printed once more.
  printed = capsys.readouterr().err.splitlines()
  assert printed == [
    line
    for line in whole_err.splitlines()
    if int(re.findall(r"step (\d+)", line)[0]) > checkpoint
  ]


def test_codes_of_batches_may_change_all_the_time():
  log = [
    {"step": 10 * i, "epoch": 3.0 + i, **STEP, "cluster/label_change": 0.9}
    for i in range(6)
  ]
  for method, expected in ("swav", []), ("secu", ["restless"]):
    judge = health.Health(
      K, N, METHODS[method].ADVICE, METHODS[method].SPARED
    ).judge
    assert [finding.sign for line in log for finding in judge(line)] == expected
