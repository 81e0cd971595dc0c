"""Scores of segmentations against the official codes', and by hand."""

import numpy as np

from odc_jax.evals import segment_scores
from tests.recordings import load


def cases(trace):
  return range(len(trace["hp"]))


def test_asot_s_scores_are_the_official_code_s(golden_asot_metrics):
  trace = load(golden_asot_metrics)
  for c in cases(trace):
    num_videos, _, has_background = trace["hp"][c].tolist()
    labels, clusters = trace[f"gt{c}"], trace[f"pr{c}"]
    lengths = trace[f"lengths{c}"]
    assert len(lengths) == num_videos
    videos = np.repeat(np.arange(num_videos), lengths)
    if has_background:
      kept = labels != -1
      labels, clusters, videos = labels[kept], clusters[kept], videos[kept]
      lengths = np.bincount(videos, minlength=num_videos)
    expected = {int(a): int(b) for a, b in trace[f"match{c}"]}
    assert segment_scores.match(labels, clusters) == expected
    draws = trace[f"f1_draws{c}"].astype(int)
    found = segment_scores.full(labels, clusters, num_videos, draws)
    mof, miou, f1 = trace[f"full{c}_f64"]
    np.testing.assert_allclose(
      found, (mof, f1, miou), rtol=0, atol=1e-12, err_msg=str(c)
    )
    rng = np.random.default_rng(0)
    ours = segment_scores.majority_draws(labels, rng)
    assert ours.shape == draws.shape
    found = segment_scores.per_sequence(labels, clusters, lengths, rng)
    np.testing.assert_allclose(
      (found.mof, found.miou), trace[f"per_video{c}_f64"], rtol=0, atol=1e-12
    )


def test_cte_s_scores_are_the_official_code_s(golden_tot_metrics):
  trace = load(golden_tot_metrics)
  for c in cases(trace):
    num_videos, k, has_background = trace["hp"][c].tolist()
    labels, draws = trace[f"gt{c}"], trace[f"f1_draws{c}"].astype(int)
    found = segment_scores.cte(
      labels, trace[f"pr{c}"], k, num_videos, draws, bool(has_background)
    )
    actions = labels[labels != -1] if has_background else labels
    ours = segment_scores.share_draws(actions, np.random.default_rng(0))
    assert ours.shape == draws.shape
    assert np.all(actions[ours] == actions[draws])
    names = ("mof", "mean_f1", "iou", "mof_bg", "iou_bg")
    expected = [np.divide(*trace[f"{name}{c}_f64"]) for name in names]
    np.testing.assert_allclose(
      found, expected, rtol=0, atol=1e-12, err_msg=str(c)
    )
