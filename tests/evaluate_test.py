"""--mode=evaluate: a run's last checkpoint, tried again and on other data."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from configs import odc_digits
from odc_jax import checkpoint, evaluate, metrics, train
from odc_jax.errors import UserError
from tests.program import assert_refused, run


def small():
  config = odc_digits.get_config("quick")
  # The first clustering, which needs no step to be compiled.
  config.num_epochs = 0
  config.model.width = 4
  return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("finished") / "run"
  train.run(small(), workdir)
  return workdir


@pytest.fixture
def workdir(finished, tmp_path):
  return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """Digits as files: three classes, fewer of them in the test set."""
  base = tmp_path_factory.mktemp("digits")
  digits = load_digits()
  for split, rows in (("train", range(300)), ("test", range(300, 400))):
    for i in rows:
      if (label := digits.target[i]) < 3:
        path = base / split / str(label) / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.round(digits.images[i] * 255 / 16).astype(np.uint8)
        Image.fromarray(pixels).save(path)
  return base


def scores_in(path):
  values = json.loads(path.read_text())
  return {k: v for k, v in values.items() if k.startswith("eval/")}


def on_folder(folder):
  config = small()
  config.data.source = f"folder:{folder}"
  config.data.split, config.eval.split = "train", "test"
  return config


def test_the_last_checkpoint_has_the_scores_that_the_run_ended_with(workdir):
  ended_with = scores_in(workdir / "summary.json")
  assert {"eval/knn_top1", "eval/knn_top1_k200"} <= set(ended_with)
  assert evaluate.run(workdir, None, None) == pytest.approx(ended_with)
  assert scores_in(workdir / "evaluation.json") == pytest.approx(ended_with)


def test_evaluations_add_up(workdir):
  ended_with = scores_in(workdir / "summary.json")
  (workdir / "summary.json").write_text("{}")
  with (workdir / "metrics.jsonl").open("a") as log:
    log.write(json.dumps({"step": 0, "cluster/min_size": 12}) + "\n")
  found = evaluate.run(workdir, None, ["clustering"])
  assert set(found) == {name for name in ended_with if "labels" in name}
  found |= evaluate.run(workdir, None, ["knn"])
  assert found == pytest.approx(ended_with)
  assert scores_in(workdir / "evaluation.json") == found
  summary = json.loads((workdir / "summary.json").read_text())
  # With what the log knows, such as the sizes of the clusters.
  assert summary == metrics.last_values(workdir)
  assert summary["cluster/min_size"] == 12


def test_other_images_have_no_clusters(workdir, folder):
  found = evaluate.run(workdir, on_folder(folder), ["knn", "clustering"])
  # 89 images, so that no hundred of them can be asked.
  assert set(found) == {
    "eval/knn_top1",
    "eval/knn_top1_k10",
    "eval/knn_top1_k20",
  }
  # Three classes of digits, which any network tells apart better than chance.
  assert found["eval/knn_top1"] > 0.6


def test_what_came_before_a_step_does_not_count_after_it(workdir):
  before = {"step": 0, "eval/knn_top1": 2.0, "eval/retrieval_map": 3.0}
  (workdir / "evaluation.json").write_text(json.dumps(before))
  assert metrics.last_values(workdir)["eval/retrieval_map"] == 3
  with (workdir / "metrics.jsonl").open("a") as log:
    log.write(json.dumps({"step": 1, "train/loss": 1.0}) + "\n")
  values = metrics.last_values(workdir)
  assert values["eval/knn_top1"] <= 1
  assert "eval/retrieval_map" not in values
  # Nor does an evaluation keep what was found of another checkpoint.
  before["step"] = 7
  (workdir / "evaluation.json").write_text(json.dumps(before))
  evaluate.run(workdir, None, ["clustering"])
  assert "eval/retrieval_map" not in scores_in(workdir / "evaluation.json")


def test_a_run_that_goes_on_keeps_its_summary_for_the_end(workdir):
  (workdir / "summary.json").unlink()
  evaluate.run(workdir, None, ["clustering"])
  assert not (workdir / "summary.json").exists()


def test_nothing_of_a_run_is_changed(workdir):
  log = (workdir / "metrics.jsonl").read_bytes()
  config = (workdir / "config.json").read_bytes()
  evaluate.run(workdir, None, ["clustering"])
  assert (workdir / "metrics.jsonl").read_bytes() == log
  assert (workdir / "config.json").read_bytes() == config
  assert checkpoint.any_in(workdir)


def test_images_that_cannot_be_read_are_named(workdir, folder, tmp_path):
  broken = shutil.copytree(folder, tmp_path / "broken")
  bad = sorted((broken / "test" / "0").iterdir())[0]
  bad.write_bytes(b"no image")
  config = on_folder(broken)
  config.data.max_bad_fraction = 0.5
  evaluate.run(workdir, config, ["knn"])
  named = (workdir / "evaluation.bad_images.txt").read_text()
  assert named.startswith("eval\t0\ttest/0/")
  assert bad.name in named
  assert not (workdir / "bad_images.txt").exists()


def test_mistakes(workdir, tmp_path, folder):
  with pytest.raises(UserError, match=r"'svn'.*knn"):
    evaluate.run(workdir, None, ["svn"])
  with pytest.raises(UserError, match=r"no evaluator.*--evals=knn"):
    evaluate.run(workdir, None, [])
  with pytest.raises(UserError, match=r"no checkpoint.*model\.weights"):
    evaluate.run(tmp_path / "none", None, None)
  config = small()
  config.model.width = 8
  with pytest.raises(UserError, match=r"model\.width=8 is not the run's, 4"):
    evaluate.run(workdir, config, None)
  config = small()
  config.data.source = f"folder:{folder / 'test' / '0'}"
  with pytest.raises(UserError, match="no labels to evaluate with"):
    evaluate.run(workdir, config, ["knn"])
  config = on_folder(folder)
  with pytest.raises(UserError, match="clustering: nothing to compare with"):
    evaluate.run(workdir, config, ["clustering"])


def test_as_a_program(environment, workdir):
  status, out, err = run(
    environment, workdir, "--mode=evaluate", "--evals=clustering"
  )
  assert status == 0, err
  assert "eval/nmi_labels" in out
  assert "eval/knn_top1" not in out
  assert_refused(
    run(environment, workdir, "--mode=evaluate", "--evals=knm"), "'knm'", "knn"
  )
  assert_refused(
    run(environment, workdir, "--mode=report", "--evals=knn"),
    "--evals needs --mode=evaluate",
  )
