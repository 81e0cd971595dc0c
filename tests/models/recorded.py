"""Recorded networks, read as the files of a user are."""

import json
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors.numpy

from odc_jax.interop import hub, recognise
from odc_jax.interop.load import load_into
from odc_jax.models.backbones import build
from odc_jax.models.functional import functional
from tests.interop.networks import experiment, zeros


class Subject(NamedTuple):
  """A backbone with the weights of a file.

  Attributes:
    settings: What was read off the file: `model.settings`.
    call: (an argument, names of methods) -> what each of them returns.
  """

  settings: dict[str, Any]
  call: Any


def write(folder, recording, architecture, **model_args):
  """Writes the weights of a recording as a repository of timm's holds them."""
  *_, height, _ = recording["image"].shape
  arrays = {
    name.removeprefix("w/"): np.ascontiguousarray(array)
    for name, array in recording.items()
    if name.startswith("w/")
  }
  safetensors.numpy.save_file(arrays, folder / "model.safetensors")
  config = {
    "architecture": architecture,
    "model_args": model_args,
    "pretrained_cfg": {
      "input_size": [3, height, height],
      "mean": [0.5, 0.5, 0.5],
      "std": [0.5, 0.5, 0.5],
      "interpolation": "bicubic",
      "crop_pct": 1.0,
    },
  }
  (folder / "config.json").write_text(json.dumps(config))


def backbone(name, **settings):
  """Reads the backbone that `model.weights` calls so.

  Args:
    name: As for `hub.resolve`.
    settings: Those that are asked for, as of `model.settings`.
  """
  found = recognise.network(hub.resolve(name), settings)
  config = experiment(stem="imagenet")
  with config.unlocked():
    config.model.update(
      {
        key.removeprefix("model."): value
        for key, value in found.items()
        if key.startswith("model.")
      }
    )
  loaded = load_into(name, *zeros(config), ("backbone",), config.model)
  network = functional(lambda rngs: build(config.model, rngs))

  def call(x, *methods):
    def run(params, batch_stats, x):
      return [
        network.apply_part(method, params, batch_stats, x) for method in methods
      ]

    # Of a ViT there are no batch statistics.
    batch_stats = loaded.batch_stats.get("backbone", {})
    return jax.jit(run)(loaded.params["backbone"], batch_stats, x)

  return Subject(found["model.settings"], call)


def channels_last(images):
  return np.ascontiguousarray(images.transpose(0, 2, 3, 1))
