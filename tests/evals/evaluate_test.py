"""--mode=evaluate: a run's last checkpoint, tried again and on other data."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import odc_jax
from configs import odc_digits
from odc_jax.errors import UserError
from odc_jax.evals import evaluate, scores
from odc_jax.logs import writer
from odc_jax.training import checkpoint, loop
from tests.data import pascal
from tests.program import assert_refused, evaluations_in, found_in, run


def small():
  config = odc_digits.get_config("quick")
  # The first clustering, which needs no step to be compiled.
  config.num_epochs = 0
  config.model.width = 4
  return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("finished") / "run"
  loop.train(small(), workdir)
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


def test_images_of_both_sets_are_assigned_as_by_the_command(folder, tmp_path):
  config = on_folder(folder)
  config.num_clusters = 3
  config.eval.evaluators = ("assignment",)
  loop.train(config, tmp_path)
  found = evaluate.run(tmp_path, None, None)
  assert found == pytest.approx(scores_in(tmp_path / "summary.json"))
  run = odc_jax.load(tmp_path)
  for split in ("train", "test"):
    table = run.assign(folder / split).to_pydict()
    labels = np.array([int(key[0]) for key in table["key"]])
    assert found[f"eval/{split}_acc_assigned"] == pytest.approx(
      scores.accuracy_one_to_one(labels, np.array(table["cluster"]), 3)
    )
  assert len(found) == 6


def on_folder(folder):
  config = small()
  config.data.source = f"folder:{folder}"
  config.data.split, config.eval.split = "train", "test"
  return config


def test_the_last_checkpoint_has_the_scores_that_the_run_ended_with(workdir):
  ended_with = scores_in(workdir / "summary.json")
  assert {"eval/knn_top1", "eval/knn_top1_k200"} <= set(ended_with)
  assert evaluate.run(workdir, None, None) == pytest.approx(ended_with)
  assert found_in(workdir) == pytest.approx(ended_with)
  entries = evaluations_in(workdir)
  assert [one["evaluator"] for one in entries] == ["knn", "clustering"]
  assert all(one["of_run"] for one in entries)


def test_evaluations_add_up(workdir):
  ended_with = scores_in(workdir / "summary.json")
  (workdir / "summary.json").write_text("{}")
  with (workdir / "metrics.jsonl").open("a") as log:
    log.write(json.dumps({"step": 0, "cluster/min_size": 12}) + "\n")
  found = evaluate.run(workdir, None, ["clustering"])
  assert set(found) == {name for name in ended_with if "labels" in name}
  found |= evaluate.run(workdir, None, ["knn"])
  assert found == pytest.approx(ended_with)
  assert found_in(workdir) == found
  summary = json.loads((workdir / "summary.json").read_text())
  # With what the log knows, such as the sizes of the clusters.
  assert summary == writer.last_values(workdir)
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
  # They are kept with the images that they belong to, and in no summary.
  (entry,) = evaluations_in(workdir)
  assert entry["scores"] == found
  assert (entry["source"], entry["split"]) == (f"folder:{folder}", "train")
  assert not entry["of_run"]
  own = scores_in(workdir / "summary.json")
  assert own["eval/knn_top1"] != found["eval/knn_top1"]
  evaluate.run(workdir, None, ["knn"])
  assert [one["of_run"] for one in evaluations_in(workdir)] == [False, True]


def test_labels_are_folders_and_not_their_numbers(workdir, folder, tmp_path):
  whole = evaluate.run(workdir, on_folder(folder), ["knn"])
  lacking = shutil.copytree(folder, tmp_path / "lacking")
  shutil.rmtree(lacking / "test" / "0")
  # Without the first class, the others keep their numbers.
  found = evaluate.run(workdir, on_folder(lacking), ["knn"])
  assert found["eval/knn_top1"] > whole["eval/knn_top1"] - 0.2 > 0.4
  (lacking / "test" / "1").rename(lacking / "test" / "other")
  with pytest.raises(UserError, match=r"'other'.*which the training set has"):
    evaluate.run(workdir, on_folder(lacking), ["knn"])


@pytest.mark.slow
def test_a_folder_that_has_changed_is_refused(folder, tmp_path):
  images = shutil.copytree(folder / "train", tmp_path / "images")
  config = small()
  config.data.source = f"folder:{images}"
  config.num_clusters = 4
  config.odc.min_cluster = 2
  workdir = tmp_path / "run"
  loop.train(config, workdir)
  before = scores_in(workdir / "summary.json")
  found = evaluate.run(workdir, None, ["clustering"])
  assert found["eval/purity_labels"] == before["eval/purity_labels"]
  # Elsewhere they are the same images.
  moved = images.rename(tmp_path / "moved")
  config.data.source = f"folder:{moved}"
  assert evaluate.run(workdir, config, ["clustering"]) == found
  moved.rename(images)
  next((images / "0").iterdir()).unlink()
  with pytest.raises(UserError, match="is not as it was when this run began"):
    evaluate.run(workdir, None, ["clustering"])


@pytest.mark.slow
def test_pascal_voc_has_several_labels_an_image(workdir, tmp_path):
  pascal.write(tmp_path / "voc", {"trainval": 40, "test": 35})
  config = small()
  config.data.source = f"voc:{tmp_path / 'voc'}"
  config.data.split, config.eval.split = "trainval", "test"
  found = evaluate.run(workdir, config, ["knn", "svm", "low_shot"])
  # No single label, so no neighbours' vote.
  assert "eval/knn_top1" not in found
  assert 0 < found["eval/svm_map_cv3"] <= 1
  assert 0 < found["eval/low_shot_map_k1_best_c"] <= 1
  svm, low_shot = evaluations_in(workdir)
  assert not svm["of_run"]
  assert not low_shot["of_run"]


def test_features_that_are_not_finite_are_refused(workdir, monkeypatch):
  restore = checkpoint.restore_parts

  def diverged(*args):
    step, params, batch_stats, method = restore(*args)
    return (
      step,
      params,
      jax.tree.map(lambda x: x * jnp.nan, batch_stats),
      method,
    )

  monkeypatch.setattr(checkpoint, "restore_parts", diverged)
  with pytest.raises(UserError, match="not finite"):
    evaluate.run(workdir, None, ["knn"])


def test_what_was_found_before_a_mistake_is_kept(workdir, capsys):
  config = small()
  config.eval.semi.percent1.list = "nowhere.txt"
  with pytest.raises(UserError, match=r"nowhere\.txt"):
    evaluate.run(workdir, config, ["clustering", "semi"])
  (entry,) = evaluations_in(workdir)
  assert "eval/nmi_labels" in entry["scores"]


def test_what_came_before_a_step_does_not_count_after_it(workdir):
  scores = {"eval/knn_top1": 2.0, "eval/retrieval_map": 3.0}
  before = {"step": 0, "of_run": True, "scores": scores}
  (workdir / "evaluation.json").write_text(json.dumps([before]))
  assert writer.last_values(workdir)["eval/retrieval_map"] == 3
  with (workdir / "metrics.jsonl").open("a") as log:
    log.write(json.dumps({"step": 1, "train/loss": 1.0}) + "\n")
  values = writer.last_values(workdir)
  assert values["eval/knn_top1"] <= 1
  assert "eval/retrieval_map" not in values
  # Nor does an evaluation keep what was found of another checkpoint.
  before["step"] = 7
  (workdir / "evaluation.json").write_text(json.dumps([before]))
  evaluate.run(workdir, None, ["clustering"])
  (entry,) = evaluations_in(workdir)
  assert "eval/retrieval_map" not in entry["scores"]


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
  config = small()
  config.eval.knn.k = 0
  with pytest.raises(UserError, match=r"eval\.knn\.k=0 is less than 1"):
    evaluate.run(workdir, config, None)
  config = on_folder(folder)
  with pytest.raises(UserError, match="clustering: nothing to compare with"):
    evaluate.run(workdir, config, ["clustering"])


@pytest.mark.slow
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
  assert_refused(
    run(environment, workdir, "--mode=evaluate", "--config.eval.knn.k=3"),
    "'config.eval.knn.k'",
    "--config=FILE.py",
  )
