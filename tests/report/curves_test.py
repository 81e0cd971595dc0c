"""Curves: the numbers behind them, and that they follow the page's colours."""

import json
import math
import re
import xml.etree.ElementTree as ET

import pytest

from benchmarks import reference
from configs import odc_digits
from odc_jax.config import check
from odc_jax.errors import UserError
from odc_jax.methods import METHODS
from odc_jax.report import curves, history
from tests.report import runs


def test_an_epoch_is_what_was_logged_in_it():
  lines = [
    {"step": 0, "epoch": 0.0, "eval/knn_top1": 0.1},
    {"step": 1, "epoch": 0.5, "train/loss": 3.0},
    {"step": 2, "epoch": 1.0, "train/loss": 1.0},
    {"step": 3, "epoch": 1.5, "train/loss": 0.5},
    {"step": 4, "epoch": 2.0, "train/loss": math.nan, "eval/knn_top1": 0.2},
  ]
  assert history.by_epoch(lines) == {
    "eval/knn_top1": ([0, 2], [0.1, 0.2]),
    "train/loss": ([1, 2], [2.0, 0.5]),
  }


def test_a_curve_is_svg_in_the_colours_of_the_page():
  series = {
    "train/loss": ([1, 2, 3], [3.0, 2.0, 1.5]),
    "cluster/max_size": ([1, 2], [500.0, 400.0]),
    "cluster/min_size": ([1, 2], [0.0, 2.0]),
  }
  drawn = curves.draw(series, None, 10, 1000)
  assert [curve.title for curve in drawn] == ["Loss", "Cluster sizes"]
  names = []
  for curve in drawn:
    root = ET.fromstring(curve.svg)
    names += [e.get("id") for e in root.iter() if e.get("id")]
    colours = set(re.findall(r"#[0-9a-f]{6}\b", curve.svg))
    assert not colours, colours
    assert "var(--accent)" in curve.svg
    assert root.get("aria-label")
  # Both are in one page: names in it have to be unique.
  assert len(names) == len(set(names))
  assert "Loss: 3 at epoch 1, 1.5 at epoch 3" in drawn[0].svg
  assert drawn[1].head == ["epoch", "largest", "smallest"]
  assert drawn[1].rows == [["1", "500", "0"], ["2", "400", "2"]]


def test_a_long_table_is_thinned_and_keeps_its_end():
  series = {"train/loss": (list(range(450)), [1.0] * 450)}
  (curve,) = curves.draw(series, None, 10, 1000)
  assert len(curve.rows) <= 100
  assert curve.thinned
  assert curve.rows[-1][0] == "449"


def three_runs(tmp_path):
  """Returns three runs whose losses are 1, 2 and 4 times the first's."""
  found = []
  for seed, factor in enumerate((1, 2, 4)):
    workdir = tmp_path / str(seed)
    runs.write_history(workdir, "digits", 5, 60, seed=seed)
    (workdir / "summary.json").write_text("{}")
    run = history.read(workdir)
    for line in run.lines:
      if "train/loss" in line:
        line["train/loss"] *= factor
    found.append(run)
  return found


def test_a_reference_holds_least_median_and_greatest(tmp_path):
  ours = three_runs(tmp_path)
  found = reference.reference(ours)
  _, losses = history.by_epoch(ours[0].lines)["train/loss"]
  band = found["scalars"]["train/loss"]
  assert band["epoch"] == list(range(1, runs.EPOCHS + 1))
  assert band["low"] == pytest.approx(losses, abs=1e-4)
  assert band["median"] == pytest.approx([2 * x for x in losses], abs=1e-4)
  assert band["high"] == pytest.approx([4 * x for x in losses], abs=1e-4)


def test_a_reference_is_found_for_its_config_whatever_the_seed(tmp_path):
  ours = three_runs(tmp_path)
  folder = tmp_path / "references"
  folder.mkdir()
  assert history.reference(ours[0].config, folder) is None
  (folder / "x.json").write_text(json.dumps(reference.reference(ours, "us")))
  found = history.reference({**ours[0].config, "seed": 99}, folder)
  assert found["about"] == "us"
  other = {**ours[0].config, "num_clusters": 6}
  assert history.reference(other, folder) is None
  drawn = curves.draw(history.by_epoch(ours[0].lines), found, 5, 60)
  assert 'id="curve0-band"' in drawn[0].svg


def test_the_shipped_reference_is_of_the_shipped_experiment():
  config = check.resolve(odc_digits.get_config(), 1797, 1)
  with config.unlocked():
    config.method_name = METHODS["odc"].NAME
  values = json.loads(config.to_json())
  assert history.reference(values)["scalars"]
  values["augment"]["rotation_interpolation"] = "nearest"
  assert history.reference(values) is None


def test_a_reference_is_made_of_like_runs_only(tmp_path):
  a, b, _ = three_runs(tmp_path)
  with pytest.raises(UserError, match=r"differ in config\.batch_size"):
    reference.reference([a, b._replace(config={**b.config, "batch_size": 2})])
  with pytest.raises(UserError, match="not all different"):
    reference.reference([a, a])
  with pytest.raises(UserError, match="seed 1 is not done"):
    reference.reference([a, b._replace(finished=False)])


def test_every_reference_names_scalars_that_are_drawn():
  drawn = {name for panel in curves.PANELS for name in panel.scalars}
  for path in history.REFERENCES.glob("*.json"):
    assert drawn & json.loads(path.read_text())["scalars"].keys()
