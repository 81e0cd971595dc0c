"""PyTorch, where a test asks for it."""

import warnings

import pytest


@pytest.fixture(scope="session")
def torch():
  """PyTorch, in a state in which torchvision and timm can be imported."""
  import torch

  with warnings.catch_warnings():
    # What these libraries warn of when they are imported is theirs.
    warnings.simplefilter("ignore")
    try:
      import torchvision
    except RuntimeError:
      # "operator torchvision::nms does not exist": built for another PyTorch,
      # as on machines without a GPU, it loads none of its operators. A ResNet
      # needs none.
      library = torch.library.Library("torchvision", "DEF")
      for name in ("nms", "qnms"):
        library.define(
          f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        )
      import torchvision
    import timm

    del torchvision, timm
  return torch
