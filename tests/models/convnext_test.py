"""ConvNeXt against timm's, from a file of theirs."""

import functools

import numpy as np

from tests.models import recorded
from tests.recordings import load


def test_golden_features(golden_convnext, tmp_path):
  recording = load(golden_convnext)
  hp = [int(n) for n in recording["hp"]]
  recorded.write(tmp_path, recording, "convnext_tiny")
  found = recorded.backbone(tmp_path)
  assert found.settings["depths"] == tuple(hp[3:7])
  assert found.settings["dims"] == tuple(hp[7:])
  images = recorded.channels_last(recording["image"])
  maps, pooled = found.call(images, "__call__", "pooled")
  assert [map_.shape[3] for map_ in maps] == [hp[7], *hp[7:]]
  close = functools.partial(np.testing.assert_allclose, rtol=0)
  last = np.transpose(maps[-1], (0, 3, 1, 2))
  close(last, recording["map"], atol=2e-4)
  close(pooled, recording["pooled"], atol=5e-5)
