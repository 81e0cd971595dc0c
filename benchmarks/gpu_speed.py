"""The parts of `benchmarks.on_gpu` that measure speed.

Each takes the options and `report`, which it hands all it knows so far, as
often as it knows more: what comes after may be cut off.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from ml_collections import ConfigDict

from benchmarks import peak, twin
from benchmarks import step as step_benchmark
from configs import odc_imagenet
from odc_jax import mesh as mesh_lib
from odc_jax.clustering import neighbors as neighbors_lib
from odc_jax.clustering.kmeans import kmeans as lloyd
from odc_jax.config import Config
from odc_jax.config import check as config_lib
from odc_jax.methods import temi as temi_method
from odc_jax.models.cluster_heads import ClusterHeads

Report = Callable[[dict[str, Any]], None]

_IMAGENET = 1_281_167
_REPEATS = 3
_PRECISIONS = {
  "float32": jax.lax.Precision.HIGHEST,
  # On a GPU: TF32.
  "default": jax.lax.Precision.DEFAULT,
}


def step(options: argparse.Namespace, report: Report) -> None:
  """Times ODC's step with ResNet-50, with memories and without."""
  config = _imagenet(options.small)
  mesh = mesh_lib.make_mesh(1)
  runs: dict[str, Any] = {}
  found: dict[str, Any] = {"sizes": _sizes(config), "compile_seconds": {}}
  steps = 1 if options.small else 10
  with jax.set_mesh(mesh):
    begin = time.perf_counter()
    for name, run in step_benchmark.ours(config, mesh):
      runs[name] = run
      found["compile_seconds"][name] = round(time.perf_counter() - begin, 1)
      seconds, _ = step_benchmark.measure({name: run}, 2, steps)
      found["first_look_ms"] = {
        **found.get("first_look_ms", {}),
        name: 1000 * min(seconds[name]),
      }
      report(found)
      begin = time.perf_counter()
    # In turns: what is compared has seen the same clock speeds.
    seconds, _ = step_benchmark.measure(runs, _REPEATS, steps)
  found |= _per_step(seconds, config.batch_size)
  shares = zip(seconds["ODC step"], seconds["without memories"], strict=True)
  found["memories_share"] = statistics.median(a / b - 1 for a, b in shares)
  flops = runs["network alone"].flops
  rate = 1000 * flops / found["ms"]["network alone"]
  most = peak.of_devices(config.model.dtype, 1)
  found["flops_of_network"] = flops
  found["flops_per_second"] = rate
  found["fraction_of_peak"] = rate / most if most else None
  report(found)


def torch(options: argparse.Namespace, report: Report) -> None:
  """Times PyTorch's twin of "network alone", eager and then compiled."""
  try:
    import torch
  except ImportError as error:
    report({"skipped": f"no PyTorch: {error}"})
    return
  config = _imagenet(options.small)
  found: dict[str, Any] = {
    "sizes": _sizes(config),
    "torch": torch.__version__,
    "cudnn": torch.backends.cudnn.version(),
    "ready_seconds": {},
  }
  runs = {}
  begin = time.perf_counter()
  for name, run in twin.twins(config):
    runs[name] = run
    found["ready_seconds"][name] = round(time.perf_counter() - begin, 1)
    repeats, steps = (1, 1) if options.small else (_REPEATS, 10)
    seconds, _ = step_benchmark.measure(runs, repeats, steps)
    found |= _per_step(seconds, config.batch_size)
    report(found)
    if options.small:
      return
    begin = time.perf_counter()


def kmeans(options: argparse.Namespace, report: Report) -> None:
  """Times an iteration of k-means on as many rows as ImageNet's memory."""
  n, d, k = (2000, 16, 20) if options.small else (_IMAGENET, 256, 10_000)
  many = 6
  found: dict[str, Any] = {"n": n, "d": d, "k": k, "by_precision": {}}
  mesh = mesh_lib.make_mesh(1)
  with jax.set_mesh(mesh):
    x = _unit_rows(n, d, mesh)
    start = jax.jit(
      lambda x: x[:: n // k][:k], out_shardings=mesh_lib.replicated(mesh)
    )(x)
    for name, precision in _PRECISIONS.items():
      begin = time.perf_counter()
      fit = jax.jit(
        lambda x, start, iters, precision=precision: lloyd(
          x,
          jax.random.key(0),
          num_examples=n,
          num_clusters=k,
          num_iters=iters,
          init=start,
          precision=precision,
        )
      )
      fit = fit.lower(x, start, jnp.int32(1)).compile()
      compilation = time.perf_counter() - begin
      jax.block_until_ready(fit(x, start, jnp.int32(1)))
      taken = {}
      for iters in (1, many):
        begin = time.perf_counter()
        result = jax.block_until_ready(fit(x, start, jnp.int32(iters)))
        taken[iters] = time.perf_counter() - begin
      seconds = (taken[many] - taken[1]) / (many - 1)
      found["by_precision"][name] = {
        "compile_seconds": round(compilation, 1),
        "seconds_per_iteration": seconds,
        "seconds_of_one_and_the_final_search": taken[1],
        "flops_per_second": 2 * n * d * k / seconds,
        "inertia": float(result.inertia),
      }
      report(found)


def neighbors(options: argparse.Namespace, report: Report) -> None:
  """Times the search for every row's nearest others, or a part of it."""
  n, d, k = (3000, 32, 5) if options.small else (_IMAGENET, 768, 50)
  rows = 512 if options.small else 16_384
  found: dict[str, Any] = {"n": n, "d": d, "k": k, "by_precision": {}}
  mesh = mesh_lib.make_mesh(1)
  with jax.set_mesh(mesh):
    x = _unit_rows(n, d, mesh)
    valid = jnp.arange(x.shape[0]) < n
    for name, precision in _PRECISIONS.items():

      def search(queries, precision=precision):
        result = neighbors_lib.nearest(
          queries, x, valid, k=k, precision=precision
        )
        return jax.block_until_ready(result)

      queries = x[:rows]
      begin = time.perf_counter()
      search(queries)
      first = time.perf_counter() - begin
      begin = time.perf_counter()
      search(queries)
      seconds = time.perf_counter() - begin
      found["by_precision"][name] = {
        "queries": rows,
        "first_call_seconds": round(first, 2),
        "seconds": seconds,
        "flops_per_second": 2 * rows * n * d / seconds,
        "seconds_for_all_by_proportion": seconds * n / rows,
      }
      report(found)
    fastest = min(
      found["by_precision"].items(), key=lambda item: item[1]["seconds"]
    )
    name, its = fastest
    if its["seconds_for_all_by_proportion"] > 0.7 * _left(options):
      found["all"] = "left out: too little time"
    else:
      begin = time.perf_counter()
      jax.block_until_ready(
        neighbors_lib.nearest_others(x, valid, k=k, precision=_PRECISIONS[name])
      )
      # Compiling it, which is a second or two, is in it.
      found["all"] = {"precision": name, "seconds": time.perf_counter() - begin}
    report(found)


class _Views(NamedTuple):
  """Outputs of every view, by the heads and by their slower copies."""

  student: tuple[Any, ...]
  teacher: tuple[Any, ...]


class _Output(NamedTuple):
  """What TEMI's method reads of a network's outputs."""

  logits: tuple[Any, ...]


def temi(options: argparse.Namespace, report: Report) -> None:
  """Times a step of TEMI's heads on features that lie on the device."""
  small = options.small
  n, d, k, heads = (500, 16, 10, 3) if small else (_IMAGENET, 768, 1000, 50)
  found: dict[str, Any] = {"n": n, "d": d, "k": k, "heads": heads, "ms": {}}
  mesh = mesh_lib.make_mesh(1)
  with jax.set_mesh(mesh):
    x = _unit_rows(n, d, mesh)
    for dtype in ("float32", "bfloat16"):
      for batch_size in (16, 32) if small else (512, 4096):
        name = f"{dtype}, batch {batch_size}"
        run = _temi_steps(x, n, k, heads, batch_size, dtype)
        seconds, _ = step_benchmark.measure(
          {name: run}, _REPEATS, 2 if small else 20
        )
        found["ms"][name] = 1000 * statistics.median(seconds[name])
        report(found)


def _temi_steps(x, n, k, num_heads, batch_size, dtype):
  """Returns what takes so many steps, compiled and run once."""
  config = ConfigDict(
    {
      "num_examples": n,
      "num_clusters": k,
      "batch_size": batch_size,
      "temi": {
        "num_heads": num_heads,
        "num_neighbors": min(50, n - 1),
        "objective": "temi",
        "weights": "heads",
        "beta": 0.6,
        "student_temperature": 0.1,
        "teacher_temperature": (0.04, 0.1),
        "teacher_temperature_epochs": 20,
        "teacher_momentum": 0.996,
        "prior_momentum": 0.9,
      },
    }
  )
  model = ClusterHeads(
    x.shape[1],
    k,
    num_heads=num_heads,
    dtype=jnp.dtype(dtype),
    rngs=nnx.Rngs(0),
  )
  graph, params = nnx.split(model)
  optimizer = optax.adamw(1e-4, weight_decay=1e-4)

  def views(params, rows):
    heads = nnx.merge(graph, params)
    return tuple(_Output(heads(x)) for x in rows)

  def step(state, x, index, key):
    number, params, teacher, opt_state, method = state
    batch = {"index": index}
    partners = temi_method.partners(config, method, index, key)
    rows = x[index], x[partners]
    by_teacher = views(teacher, rows)

    def loss_function(params):
      outputs = _Views(views(params, rows), by_teacher)
      targets = temi_method.targets(config, method, outputs, batch, number)
      targets = jax.lax.stop_gradient(targets)
      loss, scalars = temi_method.loss(config, outputs, targets, method)
      return loss, (outputs, targets, scalars)

    (loss, (outputs, targets, _)), gradients = jax.value_and_grad(
      loss_function, has_aux=True
    )(params)
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    params = optax.apply_updates(params, updates)
    m = temi_method.teacher_decay(config, number)
    teacher = jax.tree.map(lambda t, p: m * t + (1 - m) * p, teacher, params)
    method, _ = temi_method.after_step(
      config, method, outputs, targets, batch, number
    )
    return (number + 1, params, teacher, opt_state, method), loss

  step = jax.jit(step, donate_argnums=0)
  index = jax.random.permutation(jax.random.key(1), n)[:batch_size]
  state = (
    jnp.int32(0),
    params,
    jax.tree.map(jnp.copy, params),
    optimizer.init(params),
    temi_method.init(config, n, None),
  )

  def run(num):
    nonlocal state
    for i in range(num):
      state, loss = step(state, x, index, jax.random.key(i))
    jax.block_until_ready((state, loss))

  run(2)
  return run


def vit(options: argparse.Namespace, report: Report) -> None:
  """Times ViT-S/14's features of images of 224 x 224, in bfloat16."""
  try:
    from odc_jax.models.vit import ViT
    from odc_jax.models.vit_settings import Settings
  except ImportError as error:
    report({"skipped": f"this version has no vision transformers: {error}"})
    return
  side = 28 if options.small else 224
  settings = Settings(patch=14, grid=(side // 14, side // 14))
  model = ViT(settings, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
  model.eval()
  graph, state = nnx.split(model)
  features = jax.jit(
    lambda state, images: nnx.merge(graph, state).pooled(images)
  )
  found: dict[str, Any] = {"side": side, "by_batch": {}}
  for batch_size in (2,) if options.small else (256, 1024):
    images = jax.random.normal(
      jax.random.key(0), (batch_size, side, side, 3), jnp.bfloat16
    )
    begin = time.perf_counter()
    compiled = features.lower(state, images).compile()
    compilation = time.perf_counter() - begin

    def run(num, compiled=compiled, images=images):
      for _ in range(num):
        result = compiled(state, images)
      jax.block_until_ready(result)

    run(1)
    seconds, _ = step_benchmark.measure({"": run}, _REPEATS, 10)
    ms = 1000 * statistics.median(seconds[""])
    cost = compiled.cost_analysis() or {}
    flops = float(cost.get("flops", math.nan))
    found["by_batch"][str(batch_size)] = {
      "compile_seconds": round(compilation, 1),
      "ms": ms,
      "features_per_second": 1000 * batch_size / ms,
      # As XLA counts the compiled program, which may hide some in libraries.
      "flops_per_second": None if math.isnan(flops) else 1000 * flops / ms,
    }
    report(found)


def _imagenet(small: bool) -> Config:
  """Returns ODC's experiment on ImageNet, or one that takes seconds."""
  config: Any = odc_imagenet.get_config()
  config.batch_size = 512
  config.model.dtype = "bfloat16"
  num_examples = _IMAGENET
  if small:
    config.model.update(name="resnet18", stem="small", width=8, group_size=0)
    config.model.update(neck_hidden=32, embedding_dim=16)
    config.data.image_size = 16
    config.batch_size, config.num_clusters, num_examples = 16, 20, 500
  return config_lib.resolve(config, num_examples, 1)


def _sizes(config: Config) -> dict[str, Any]:
  return {
    "model": config.model.name,
    "image_size": config.data.image_size,
    "batch_size": config.batch_size,
    "dtype": config.model.dtype,
    "num_examples": config.num_examples,
    "num_clusters": config.num_clusters,
    "embedding_dim": config.model.embedding_dim,
  }


def _per_step(seconds: dict[str, list[float]], batch_size: int):
  median = {name: statistics.median(x) for name, x in seconds.items()}
  return {
    "ms": {name: 1000 * x for name, x in median.items()},
    "images_per_second": {name: batch_size / x for name, x in median.items()},
    "ms_of_repeats": {
      name: [round(1000 * x, 3) for x in of_run]
      for name, of_run in seconds.items()
    },
  }


def _unit_rows(n: int, d: int, mesh) -> jax.Array:
  """Returns random rows of length one, and zeros that fill up the last."""

  def fill():
    x = jax.random.normal(jax.random.key(0), (mesh_lib.padded_rows(n), d))
    x /= jnp.linalg.norm(x, axis=1, keepdims=True)
    return jnp.where(jnp.arange(len(x))[:, None] < n, x, 0)

  return jax.jit(fill, out_shardings=mesh_lib.rows(mesh))()


def _left(options: argparse.Namespace) -> float:
  """Returns the seconds that this part still has."""
  return options.until - time.monotonic()
