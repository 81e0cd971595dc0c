"""Measures a run before it is launched: python run.py --mode=plan

Compiles what the run would compile, for the devices at hand or for a TPU slice
that is not there, and reads memory, traffic and work off the result. Nothing
is computed.
"""

import json
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from odc_jax import mesh as mesh_lib
from odc_jax.config import Config, auto, options
from odc_jax.config import check as config_lib
from odc_jax.data import order as order_lib
from odc_jax.data import resident, sources
from odc_jax.errors import UserError
from odc_jax.interop import describe
from odc_jax.methods import METHODS
from odc_jax.methods.method import Passes
from odc_jax.passes import extract, frozen
from odc_jax.plan import collectives as collectives_lib
from odc_jax.plan import sizes, tpu_slices
from odc_jax.plan.chips import device_limits
from odc_jax.plan.table import (
  _grouped,
  _print_bytes,
  _print_collectives,
  _print_counts,
  _print_phases,
)
from odc_jax.training import parameters
from odc_jax.training.programs import Program, assemble


class Usage(NamedTuple):
  """The needs of a compiled program per device; bytes but for the last three.

  Attributes:
    arguments: Its arguments.
    in_place: The arguments that its results overwrite.
    results: Its results, `in_place` included.
    temporaries: Further arrays while it runs.
    code: The program itself.
    flops: Operations; those in a loop count once.
    seconds: XLA's own estimate, NaN where it has none.
    collectives: (op, shape, bytes), as `hlo.collectives` gives them.
  """

  arguments: int
  in_place: int
  results: int
  temporaries: int
  code: int
  flops: float
  seconds: float
  collectives: list[tuple[str, str, int]]

  @property
  def added(self) -> int:
    """Bytes that running it needs beyond its arguments."""
    return self.results - self.in_place + self.temporaries + self.code


class TooLargeError(Exception):
  """The compiler found that a program does not fit the device."""


def run(
  config: Config,
  *,
  topology_name: str = "",
  num_examples: int = 0,
  images_per_second: float = 0.0,
  written: Config | None = None,
) -> dict[str, Any]:
  """Prints what a run needs: a table, then the same as one line of JSON.

  A run that does not fit is told so; it is not an error, a plan was asked for.

  Args:
    config: A complete experiment, as the files in `configs/` give it.
    topology_name: A TPU slice, such as "v5e:16x16"; "" for the devices here.
    num_examples: Images in the training set; 0 to open it and count.
    images_per_second: Measured elsewhere; 0 if it is not known.
    written: The experiment as its file has it, before the command line changed
      it; None if there is no file.

  Returns:
    What the JSON holds.

  Raises:
    UserError: For whatever the user can mend.
  """
  if num_examples < 0 or images_per_second < 0:
    raise UserError("--num_examples and --images_per_second are at least 0")
  devices = tpu_slices.devices(topology_name) if topology_name else None
  mesh = mesh_lib.make_mesh(devices=devices)
  method = config_lib.choose(METHODS, config.method, "method")
  options.check(config, method)
  if not num_examples:
    num_examples = len(sources.of(config.data))
  config, _ = describe.fill(config)
  config, reasons = auto.fill(config, num_examples, mesh.size, method.AUTO)
  if written is not None:
    reasons = [*reasons, *rate_advice(config, written)]
  config = config_lib.resolve(config, num_examples, mesh.size)
  with jax.set_mesh(mesh):
    program = assemble(config, method, mesh)
    result = _plan(config, method, program, mesh, reasons, images_per_second)
  print(json.dumps({"topology": topology_name, **result}))
  return result


def rate_advice(config: Config, written: Config) -> list[str]:
  """Returns a line where another batch size has kept its learning rate.

  Args:
    config: An experiment whose sizes are numbers.
    written: The same as its file has it, whose rate belongs to its batch size.

  Source: Goyal et al., "Accurate, large minibatch SGD", 2017: the rate in
  proportion to the batch size.
  """
  rate, of = config.optimizer.learning_rate, written.batch_size
  if of in ("auto", config.batch_size):
    return []
  if rate != written.optimizer.learning_rate:
    return []
  fitting = f"{rate * config.batch_size / of:.3g}"
  return [
    f"batch_size={config.batch_size}, but optimizer.learning_rate={rate:g} is "
    f"the file's for batch_size={of}: in proportion it would be {fitting}, "
    f"--config.optimizer.learning_rate={fitting}"
  ]


def lowered(
  config: Config, method: Any, program: Program, mesh: Mesh
) -> dict[str, Callable[[], Any]]:
  """Returns the programs of a run: name -> () -> what can be compiled.

  Of a frozen backbone the images pass through once ("features"), and what an
  extraction would give is made of those ("embeddings"), or of features from
  elsewhere.

  To be called inside `jax.set_mesh(mesh)`, whose devices need not exist.
  """
  state = program.shapes
  rows, whole = mesh_lib.rows(mesh), mesh_lib.replicated(mesh)
  params, batch_stats = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole),
    (state.params, state.batch_stats),
  )
  buffers = jax.tree.map(
    lambda part: jax.ShapeDtypeStruct(part.shape, part.dtype, sharding=rows),
    sizes.extracted_shapes(config, program.outputs),
  )

  embeddings = buffers[1]
  image = program.batch["image"]
  if isinstance(image, resident.Taken):
    num_views = image.num_views
  else:  # the views of the first size
    image = image[:1]
    num_views = image[0].shape[1]
  augmented = jax.ShapeDtypeStruct(
    (embeddings.shape[0], num_views, embeddings.shape[1]),
    embeddings.dtype,
    sharding=rows,
  )
  asked = set()

  def recluster(params, method_state, embeddings, augmented):
    def passed(name, rows):
      asked.add(name)
      return rows

    passes = Passes(
      lambda: passed("embeddings", embeddings),
      lambda: passed("augmented", augmented),
      program.head,
      params,
      lambda: (passed("augmented", augmented), augmented[:, 0, 0] != 0),
    )
    return method.recluster(config, method_state, passes, 0)

  programs = _passes(config, program, mesh, params, batch_stats, buffers)
  programs["step"] = lambda: program.step.lower(state, program.batch)
  if method.recluster is not None:
    arguments = params, _placed(state.method, program.shardings.method)
    arguments = *arguments, embeddings, augmented
    jax.eval_shape(recluster, *arguments)
    programs["clustering"] = lambda: jax.jit(recluster).lower(*arguments)
  if "augmented" in asked:
    key = jax.eval_shape(lambda: jax.random.key(0))
    batch = program.batch | {"image": image}
    programs["augmented pass"] = lambda: program.observe.lower(
      augmented,
      params,
      batch_stats,
      key,
      _placed(batch, jax.tree.map(lambda _: rows, batch)),
    )
  return programs


def _passes(config, program, mesh, params, batch_stats, buffers):
  """Returns the programs through which all images pass, one or two."""
  rows = mesh_lib.rows(mesh)
  batch_size = mesh_lib.divisible(config.eval.batch_size, mesh)
  size = config.data.image_size
  images = jax.ShapeDtypeStruct(
    (batch_size, size, size, 3), jnp.uint8, sharding=rows
  )
  index = jax.ShapeDtypeStruct((batch_size,), jnp.int32, sharding=rows)
  if config_lib.has_features(config):
    return {
      "embeddings": lambda: program.embed.lower(params, batch_stats, buffers[0])
    }
  if config_lib.is_frozen(config):
    look = frozen.compiled(program.forward, mesh)
    return {
      "features": lambda: look.lower((params, batch_stats), images),
      "embeddings": lambda: program.embed.lower(
        params, batch_stats, buffers[0]
      ),
    }
  write = extract.writer(program.forward, mesh)
  return {
    "extraction": lambda: write.lower(
      buffers, params, batch_stats, images, index, index
    )
  }


def _placed(shapes, shardings):
  """Returns shapes that say where they lie."""
  return jax.tree.map(
    lambda leaf, where: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=where
    ),
    shapes,
    shardings,
  )


def measure(lower: Callable[[], Any]) -> Usage:
  """Compiles a program and returns what it takes.

  Raises:
    TooLargeError: It does not fit the device; with the compiler's words.
  """
  try:
    compiled = lower().compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    line = str(error).splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")
    raise TooLargeError(line) from error
  sizes_ = compiled.memory_analysis()
  costs = compiled.cost_analysis() or {}
  return Usage(
    arguments=sizes_.argument_size_in_bytes,
    in_place=sizes_.alias_size_in_bytes,
    results=sizes_.output_size_in_bytes,
    temporaries=sizes_.temp_size_in_bytes,
    code=sizes_.generated_code_size_in_bytes,
    flops=costs.get("flops", 0.0),
    seconds=costs.get("optimal_seconds", math.nan),
    collectives=collectives_lib.collectives(compiled.as_text()),
  )


def _plan(config, method, program, mesh, reasons, images_per_second):
  devices = list(mesh.devices.flat)
  num_processes = len({device.process_index for device in devices})
  limit, limit_source, peak = device_limits(devices[0])
  steps_per_epoch = order_lib.steps_per_epoch(
    config.num_examples, config.batch_size
  )
  num_steps = int(config.num_epochs * steps_per_epoch)
  print(
    f"{config.num_examples:,} images, {config.num_clusters:,} clusters, "
    f"batch {config.batch_size:,}\n"
    f"{len(devices)} x {devices[0].device_kind}, {num_processes} "
    f"process{'es' if num_processes > 1 else ''}\n"
    f"{steps_per_epoch:,} steps an epoch, {config.num_epochs:,} epochs, "
    f"{num_steps:,} steps"
  )
  print(*reasons, sep="\n", end="\n" if reasons else "")

  num_parameters = parameters.counts(program.shapes.params)
  _print_counts("Parameters", num_parameters)
  parts = sizes.parts_of(config, program, mesh)
  _print_bytes("Bytes per device", parts)
  kept_bytes = parts.get(sizes.KEPT, 0)
  state_bytes = sum(parts.values()) - parts["batches"] - kept_bytes

  usages, too_large = {}, {}
  for name, lower in lowered(config, method, program, mesh).items():
    begin = time.perf_counter()
    try:
      usages[name] = measure(lower)
    except TooLargeError as error:
      too_large[name] = str(error)
    print(f"compiled: {name}, {time.perf_counter() - begin:.0f} s", flush=True)
  phases = sizes.phases_of(config, program, usages, parts, state_bytes, mesh)
  fits = _print_phases(phases, usages, too_large, limit, limit_source)

  sharded = parts["sample memory"] * len(devices) // num_processes
  host = sizes.host_bytes(
    config,
    state_bytes - parts["sample memory"] + sharded,
    num_processes,
    kept_bytes * len(devices) // num_processes,
  )
  _print_bytes("Bytes per process on the host, estimated", host)
  disk = sizes.disk_bytes(config, program.outputs)
  if disk:
    _print_bytes("Bytes on disk beside the work directory", disk)

  for name, usage in usages.items():
    _print_collectives(name, usage.collectives)

  result = {
    "device": devices[0].device_kind,
    "devices": len(devices),
    "processes": num_processes,
    "num_examples": config.num_examples,
    "num_clusters": config.num_clusters,
    "batch_size": config.batch_size,
    "steps_per_epoch": steps_per_epoch,
    "steps": num_steps,
    "limit": limit,
    "fits": fits,
    "too_large": too_large,
    "num_parameters": num_parameters,
    "parts": parts,
    "phases": phases,
    "host": host,
    "disk": disk,
    "programs": {
      name: {**usage._asdict(), "collectives": _grouped(usage.collectives)}
      for name, usage in usages.items()
    },
    **_times(config, usages, num_steps, peak, images_per_second),
  }
  for program_ in result["programs"].values():
    program_.pop("seconds")  # only where it is sane, and then it stands above
  return result


def _times(config, usages, num_steps, peak, images_per_second):
  """Prints and returns what is known of the time."""
  found = {}
  step, images = usages.get("step"), num_steps * config.batch_size
  what = ""
  if config_lib.is_frozen(config) and not config_lib.has_features(config):
    images, what = config.num_examples, " for the pass over the images"
    if (look := usages.get("features")) is not None:
      batches = -(-images // config.eval.batch_size)  # or a few less
      found["pass_flops_per_device"] = batches * look.flops
      line = f"\n{batches * look.flops:.3g} FLOPs of the pass, each device"
      if peak:
        found["least_pass_seconds"] = batches * look.flops / peak
        line += f": {batches * look.flops / peak:,.0f} s at the chip's peak"
      print(line)
  if step is not None:
    found["step_flops_per_device"] = step.flops
    line = f"\n{step.flops:.3g} FLOPs a step and device"
    if peak:
      least = step.flops / peak
      found["least_step_ms"] = 1e3 * least
      line += f": {1e3 * least:.1f} ms at the chip's peak"
      # XLA's estimate is for its own choices between programs; it may be
      # negative, or less than the arithmetic alone takes.
      if step.seconds >= least:
        found["xla_step_ms"] = 1e3 * step.seconds
        line += f"; XLA expects {1e3 * step.seconds:.1f} ms"
      else:
        line += "; XLA's own estimate makes no sense here"
    print(line)
  if images_per_second:
    hours = images / images_per_second / 3600
    found["hours"] = hours
    print(f"{hours:,.1f} hours at {images_per_second:,.0f} images/s{what}")
  return found
