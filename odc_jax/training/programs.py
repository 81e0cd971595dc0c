"""The compiled functions of a run, and the layout of its state.

The loop runs them; a plan compiles them for devices that are not there.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from odc_jax import mesh as mesh_lib
from odc_jax.config import Config
from odc_jax.config import check as config_lib
from odc_jax.data import augment, loader, resident
from odc_jax.distributed import compiler
from odc_jax.errors import UserError
from odc_jax.models.backbones import check_image_size, input_shape
from odc_jax.models.functional import Functional, functional
from odc_jax.models.network import build
from odc_jax.training import optim
from odc_jax.training import state as state_lib
from odc_jax.training.judge import Judgement, make_judge
from odc_jax.training.state import TrainState
from odc_jax.training.step import make_step

# `model.train` -> the parts of the network that no step changes.
FROZEN = {"all": (), "head": ("backbone",)}


class Program(NamedTuple):
  """The compiled side of an experiment on a mesh.

  Attributes:
    init: () -> TrainState, jitted; every leaf where it belongs.
    step: (state, batch) -> (state, scalars, finite), jitted; see `make_step`.
      The state is donated.
    forward: (params, batch_stats, uint8 images [b, h, w, 3]) -> outputs in
      evaluation mode, to be jitted; also of features [b, c] from elsewhere.
    maps: (params, batch_stats, uint8 images [b, h, w, 3]) -> the backbone's
      five feature maps, [b, h', w', c], to be jitted.
    head: (params, embeddings [b, d]) -> logits, [b, k] for each clustering, to
      be jitted.
    observe: See `make_observe`, jitted. The buffer is donated.
    renew: (state, step) -> state, jitted: the method's `FRESH` parts of the
      network, and what the optimizer knows of them, start anew.
    judge: See `make_judge`, jitted.
    evaluated: A state, or as much of one as `evaluated_parts` -> (params,
      batch_stats) that evaluation, export and assignment take: the student's
      or the teacher's.
    evaluated_parts: Fields of the state.
    embed: (params, batch_stats, features [rows, c]) -> embeddings [rows, d] in
      evaluation mode, jitted; rows are split over the devices.
    shapes: The state as `jax.eval_shape` gives it.
    shardings: Where every leaf of the state lies.
    outputs: The shapes of what `forward` makes of one image.
    batch: The shapes of a global batch that `step` takes.
  """

  init: Callable[[], TrainState]
  step: Callable[..., tuple[TrainState, dict[str, Any], dict[str, Any]]]
  forward: Callable[..., Any]
  maps: Callable[..., list[Array]]
  head: Callable[..., tuple[Array, ...]]
  observe: Callable[..., tuple[Any, Array]]
  renew: Callable[[TrainState, Any], TrainState]
  judge: Callable[..., "Judgement"]
  evaluated: Callable[[TrainState], tuple[Any, Any]]
  evaluated_parts: tuple[str, ...]
  embed: Callable[..., Array]
  shapes: TrainState
  shardings: TrainState
  outputs: Any
  batch: dict[str, Any]


def assemble(
  config: Config, method: Any, mesh: Mesh, resident_side: int = 0
) -> Program:
  """Puts an experiment together; nothing is computed yet.

  Args:
    config: A resolved experiment (`config.resolve`).
    method: One of `METHODS`.
    mesh: The devices, of which only the description need exist.
    resident_side: Of the images that lie on them; 0 if they are the host's.

  Raises:
    UserError: If the devices cannot share the rows of the memories evenly, or
      if there are too many of them to be numbered; or if the images are not of
      a size for the network.
  """
  check_image_size(config.model, config.data.image_size)
  network = _network(config, method)
  frozen = FROZEN[config_lib.training(config)]
  optimizer = optim.make(config.optimizer, config_lib.steps_per_epoch(config))
  init = state_lib.init_function(
    config, method, network, optimizer, config.num_examples, frozen
  )
  shapes = jax.eval_shape(init)
  shardings = state_lib.shardings(shapes, mesh)
  _check_rows(shapes, shardings, mesh.size)
  augmentation = _augmentation(config)
  forward, maps, head, embed = _evaluation(config, network, shapes.batch_stats)
  evaluated, evaluated_parts = _evaluated(config, method)
  shape, dtype = input_shape(config.model, config.data.image_size)
  image = jax.ShapeDtypeStruct((1, *shape), dtype)
  outputs = jax.eval_shape(forward, shapes.params, shapes.batch_stats, image)
  return Program(
    init=jax.jit(
      init,
      out_shardings=shardings,
      compiler_options=compiler.options_for_once(mesh),
    ),
    step=jax.jit(
      make_step(config, method, network, optimizer, augmentation, frozen),
      donate_argnums=0,
      in_shardings=(shardings, mesh_lib.rows(mesh)),
      out_shardings=(shardings, None, None),
      compiler_options=compiler.compiler_options(mesh),
    ),
    forward=forward,
    maps=maps,
    head=head,
    observe=jax.jit(
      make_observe(method, network, augmentation),
      donate_argnums=0,
      out_shardings=(mesh_lib.rows(mesh), mesh_lib.replicated(mesh)),
      compiler_options=compiler.compiler_options(mesh),
    ),
    renew=jax.jit(
      state_lib.renewal(network, optimizer, method.FRESH, frozen),
      donate_argnums=0,
      out_shardings=shardings,
    ),
    judge=jax.jit(
      make_judge(config, method, head),
      out_shardings=mesh_lib.replicated(mesh),
    ),
    evaluated=evaluated,
    evaluated_parts=evaluated_parts,
    embed=jax.jit(embed, out_shardings=mesh_lib.rows(mesh)),
    shapes=shapes,
    shardings=shardings,
    outputs=outputs,
    batch={
      "image": (
        _rows(config, outputs.features)
        if frozen
        else _images(config, resident_side)
      ),
      "index": jax.ShapeDtypeStruct((config.batch_size,), jnp.int32),
    },
  )


def _network(config, method) -> Functional:
  """Returns the experiment's network as pure functions."""
  return functional(
    lambda rngs: build(
      config.model,
      method.clusterings(config),
      rngs,
      in_channels=2 if config.augment.sobel else 3,
      head=method.HEAD,
      views_together=method.VIEWS_TOGETHER,
    )
  )


def _evaluated(config, method):
  """Returns `evaluated` and `evaluated_parts` of `Program`."""
  parts = ("params", "batch_stats")
  teacher = method.teacher
  if teacher and teacher.present(config) and teacher.evaluated(config):
    return state_lib.taught, (*parts, "teacher", "teacher_stats")
  return lambda state: (state.params, state.batch_stats), parts


def _augmentation(config):
  """Returns `augmentation(key, images, index)`, as `make_step` takes it."""

  def augmentation(key, images, index):
    if isinstance(images, resident.Taken):
      return resident.taken(images, index)
    if isinstance(images, resident.Cuts):
      images = resident.views(images, index)
    return augment.augment_views(config.augment, key, images, index)

  return augmentation


def _evaluation(config, network, statistics):
  """Returns `forward`, `maps`, `head` and `embed` of `Program`, not jitted.

  Args:
    config: The experiment.
    network: The model as pure functions.
    statistics: The shapes of the running statistics of BatchNorm.
  """

  def forward(params, batch_stats, images):
    if images.ndim == 4:  # no features from elsewhere
      images = augment.normalize(config.augment, images)
    return network.apply(params, batch_stats, images, None, train=False)[0]

  def maps(params, batch_stats, images):
    images = augment.normalize(config.augment, images)
    return network.apply_part(
      "backbone.stage_maps", params, batch_stats, images
    )

  def head(params, embeddings):
    # A head keeps no statistics, and these are not computed.
    zeros = jax.tree.map(
      lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), statistics
    )
    return network.apply_part("head", params, zeros, embeddings)

  def embed(params, batch_stats, features):
    return network.apply(params, batch_stats, features, None, train=False)[
      0
    ].embeddings

  return forward, maps, head, embed


def _rows(config, features):
  """Returns the shapes of what a batch has of a frozen backbone's features."""
  rows = mesh_lib.padded_rows(config.num_examples)
  return resident.Taken(
    jax.ShapeDtypeStruct((rows, features.shape[1]), features.dtype),
    sum(crop.views for crop in loader.crops(config.data)),
  )


def _images(config, resident_side):
  """Returns the shapes of what a batch has of its images."""
  b, crops = config.batch_size, loader.crops(config.data)
  shape = jax.ShapeDtypeStruct
  if not resident_side:
    sides = [(crop.views, crop.size, crop.size) for crop in crops]
    return tuple(shape((b, *side, 3), jnp.uint8) for side in sides)
  rows = mesh_lib.padded_rows(config.num_examples)
  return resident.Cuts(
    shape((rows, resident_side, resident_side, 3), jnp.uint8),
    shape((b, 2), jnp.int32),
    tuple(shape((b, crop.views, 4), jnp.float32) for crop in crops),
    tuple(crop.size for crop in crops),
  )


def make_observe(method: Any, network: Functional, augmentation: Any):
  """Returns `observe(embeddings, params, batch_stats, key, batch)`.

  It writes what the network in training mode makes of a batch's views into
  rows of `embeddings`, [n, v, d], and returns them with the running statistics
  of BatchNorm, which move on.

  Args:
    method: One of `METHODS`.
    network: The model as pure functions.
    augmentation: As for `make_step`.
  """

  def observe(embeddings, params, batch_stats, key, batch):
    augment_key, network_key = jax.random.split(key)
    images = augmentation(augment_key, batch["image"], batch["index"])
    views, batch_stats = network.apply(
      method.prepare(params), batch_stats, images, network_key, train=True
    )
    rows = jnp.stack([view.embeddings for view in views], axis=1)
    return embeddings.at[batch["index"]].set(rows), batch_stats

  return observe


def _check_rows(shapes, shardings, num_devices):
  for shape, sharding in zip(
    jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True
  ):
    rows = shape.shape[0] if shape.shape else 0
    if sharding.spec != mesh_lib.ROWS:
      continue
    if rows > jnp.iinfo(jnp.int32).max:
      raise UserError(
        f"a memory of {rows:,} rows is more than int32 can number; take fewer "
        "than 2,147,482,624 images"
      )
    if rows % num_devices:
      raise UserError(
        f"{num_devices} devices cannot share a memory of {rows:,} rows "
        "evenly; take a number of devices that divides 1,024"
      )
