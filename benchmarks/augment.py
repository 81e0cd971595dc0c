"""Times the augmentations beside the training step that they feed.

  python -m benchmarks.augment [--batch-size=16 --image-size=224 --repeats=3]

Every operation alone, done to all images of the batch; then the recipe of
`configs/odc_imagenet.py` and one like SwAV's. Every row includes what the first
has, bytes to normalised floats. Beside them, in the same run, a whole training
step at the same batch and size: forward, backward, update and memories of that
config's ResNet-50, with its images augmented beforehand. The memories are small
here (1,024 images, 64 clusters), which makes the step look a little faster.

The share is recipe / (recipe + step); every time is the least of --repeats, of
five times as many for the augmentations, which are short. On a CPU the network
computes in float32 unless --dtype says otherwise: bfloat16 is slower there, and
would flatter. Prints a table and one JSON line.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import odc_imagenet
from odc_jax import mesh as mesh_lib
from odc_jax.config import check as config_lib
from odc_jax.data import augment
from odc_jax.distributed import compiler
from odc_jax.methods import METHODS
from odc_jax.models.functional import functional
from odc_jax.models.network import build
from odc_jax.training import optim
from odc_jax.training import state as state_lib
from odc_jax.training.step import make_step

NUM_EXAMPLES = 1024

OFF = {
  "flip": 0.0,
  "rotation": 0.0,
  "translate": 0,
  "jitter_p": 0.0,
  "gray": 0.0,
  "blur": 0.0,
  "solarize": 0.0,
  "lighting": 0.0,
  "sobel": False,
}
# Both outcomes of every draw are computed, so that the probability does not
# matter to the time.
OPERATIONS = {
  "convert and normalise": {},
  "flip": {"flip": 0.5},
  "rotation": {"rotation": 2.0},
  "jitter": {"jitter_p": 1.0},
  "  its three blends alone": {"jitter_p": 1.0, "hue": 0.0},
  "  its hue alone": {
    "jitter_p": 1.0,
    "brightness": 0.0,
    "contrast": 0.0,
    "saturation": 0.0,
  },
  "grey": {"gray": 0.2},
  "blur": {"blur": 0.5},
  "solarise": {"solarize": 0.2},
  "translation": {"translate": 8},
  "lighting": {"lighting": 0.1},
  "sobel": {"sobel": True},
}
SWAV = {
  "flip": 0.5,
  "jitter_p": 0.8,
  "brightness": 0.8,
  "contrast": 0.8,
  "saturation": 0.8,
  "hue": 0.2,
  "gray": 0.2,
  "blur": 0.5,
  "blur_sigma": (0.1, 2.0),
}


def make_config(args) -> ConfigDict:
  """Returns the ImageNet experiment over few images and clusters."""
  config: Any = odc_imagenet.get_config()
  config.batch_size = args.batch_size
  config.num_clusters = 64
  config.model.group_size = 0
  config.model.dtype = args.dtype
  return config_lib.resolve(config, NUM_EXAMPLES, jax.device_count())


def seconds(repeats: int, run: Callable[[], Any]) -> float:
  """Returns the least of the times, after one that compiles."""
  jax.block_until_ready(run())
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    jax.block_until_ready(run())
    times.append(time.perf_counter() - start)
  return min(times)


def time_augmentation(section, changes, repeats, images, index) -> float:
  """Returns seconds per batch of the recipe `section`, changed."""
  recipe = ConfigDict(section)
  recipe.update(changes)
  run = jax.jit(
    lambda key, images, index: augment.augment(recipe, key, images, index)
  )
  key = jax.random.key(0)
  return seconds(repeats, lambda: run(key, images, index))


def time_step(config, mesh, repeats, images, index) -> float:
  """Returns seconds per training step without its augmentation."""
  network = functional(
    lambda rngs: build(config.model, config.num_clusters, rngs)
  )
  optimizer = optim.make(config.optimizer, NUM_EXAMPLES // config.batch_size)
  method = METHODS["odc"]
  init = state_lib.init_function(
    config, method, network, optimizer, NUM_EXAMPLES
  )
  step = jax.jit(
    make_step(
      config,
      method,
      network,
      optimizer,
      lambda key, images, index: images,
    ),
    donate_argnums=0,
    compiler_options=compiler.compiler_options(mesh),
  )
  state = jax.jit(init)()
  views = augment.normalize(config.augment, images)[:, None]
  batch = {"image": (views,), "index": index}

  def run():
    nonlocal state
    state, scalars, finite = step(state, batch)
    return state, scalars, finite

  return seconds(repeats, run)


def main() -> None:
  """Parses the sizes, measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--batch-size", type=int, default=16)
  parser.add_argument("--image-size", type=int, default=224)
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument(
    "--dtype",
    choices=("float32", "bfloat16"),
    default="float32" if jax.default_backend() == "cpu" else "bfloat16",
  )
  args = parser.parse_args()
  config = make_config(args)
  rng = np.random.default_rng(0)
  shape = (args.batch_size, args.image_size, args.image_size, 3)
  mesh = mesh_lib.make_mesh()
  with jax.set_mesh(mesh):
    images, index = jax.device_put(
      (
        rng.integers(0, 256, shape, np.uint8),
        np.arange(args.batch_size, dtype=np.int32),
      ),
      mesh_lib.rows(mesh),
    )

    def measure(changes):
      return time_augmentation(
        config.augment, changes, 5 * args.repeats, images, index
      )

    operations = {
      name: measure({**OFF, **changes}) for name, changes in OPERATIONS.items()
    }
    recipes = {"ODC": measure({}), "SwAV": measure({**OFF, **SWAV})}
    step = time_step(config, mesh, args.repeats, images, index)
  print(
    f"{args.batch_size} images of {args.image_size} x {args.image_size} on "
    f"{jax.device_count()} {jax.default_backend()} device(s), "
    f"{args.dtype}, jax {jax.__version__}"
  )
  print("                                  ms     share")
  for name, value in operations.items():
    print(f"{name:26}{1000 * value:10.1f}")
  for name, value in recipes.items():
    share = value / (value + step)
    print(f"{name + ' recipe':26}{1000 * value:10.1f}{100 * share:8.2f} %")
  print(f"{'ResNet-50 step':26}{1000 * step:10.1f}")
  print(
    json.dumps(
      {
        "benchmark": "augment",
        **vars(args),
        "backend": jax.default_backend(),
        "operations_s": operations,
        "recipes_s": recipes,
        "step_s": step,
        "shares": {
          name: value / (value + step) for name, value in recipes.items()
        },
      }
    )
  )


if __name__ == "__main__":
  main()
