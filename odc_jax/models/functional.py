"""Hides NNX from the train step: a model as two pure functions over dicts."""

import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx

# Nested dicts with strings for keys and arrays for leaves.
Tree = dict[str, Any]


class Functional(NamedTuple):
  """A model without state of its own.

  Attributes:
    init: `init(key) -> (params, batch_stats)`, to be run under `jax.jit` (with
      `out_shardings`, if need be) or `jax.eval_shape`.
    apply: `apply(params, batch_stats, images, key, train) -> (outputs,
      batch_stats)`, to be used inside `jax.jit` and `jax.grad`. `train` is a
      Python bool. `key` seeds dropout and may be None in evaluation, which
      returns `batch_stats` as they came.
    apply_part: `apply_part(name, params, batch_stats, x) -> outputs`: a
      submodule or a method alone, such as "head" or "backbone.features", in
      evaluation.
  """

  init: Callable[[jax.Array], tuple[Tree, Tree]]
  apply: Callable[..., tuple[Any, Tree]]
  apply_part: Callable[[str, Tree, Tree, Any], Any]


def functional(make: Callable[[nnx.Rngs], nnx.Module]) -> Functional:
  """Turns a module into pure functions.

  Args:
    make: creates the module, whose call takes images (or whatever else) and an
      `nnx.Rngs` or None. It may hold parameters and batch statistics, nothing
      else.

  Returns:
    Its `init`, `apply` and `apply_part`.

  Raises:
    ValueError: if the module holds another kind of state, such as a generator
      of random numbers, which no checkpoint would keep.
  """
  # Train and eval mode are attributes, and attributes are part of the graph
  # definition: hence two. No weight is computed for either.
  model = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
  model.train()
  train_graph, _, _ = nnx.split(model, nnx.Param, nnx.BatchStat)
  model.eval()
  eval_graph, _, _ = nnx.split(model, nnx.Param, nnx.BatchStat)

  def init(key: jax.Array) -> tuple[Tree, Tree]:
    module = make(nnx.Rngs(key))
    return _to_tree(module, nnx.Param), _to_tree(module, nnx.BatchStat)

  def apply(
    params: Tree,
    batch_stats: Tree,
    images: Any,
    key: jax.Array | None,
    train: bool,
  ) -> tuple[Any, Tree]:
    module = nnx.merge(
      train_graph if train else eval_graph,
      _from_tree(params),
      _from_tree(batch_stats),
    )
    outputs = module(images, None if key is None else nnx.Rngs(key))
    if train:
      batch_stats = _to_tree(module, nnx.BatchStat)
    return outputs, batch_stats

  def apply_part(name: str, params: Tree, batch_stats: Tree, x: Any) -> Any:
    module = nnx.merge(eval_graph, _from_tree(params), _from_tree(batch_stats))
    return operator.attrgetter(name)(module)(x)

  return Functional(init, apply, apply_part)


def _to_tree(module: nnx.Module, kind: type) -> Tree:
  """Returns a kind of state as dicts, an `nnx.List`'s indices as strings.

  Orbax hands integer keys back as strings if it restores without a target,
  and paths that mix the two can be neither sorted nor joined.
  """

  def convert(node: Any) -> Any:
    if isinstance(node, dict):
      return {str(name): convert(child) for name, child in node.items()}
    return node

  return convert(nnx.to_pure_dict(nnx.state(module, kind)))


def _from_tree(tree: Tree) -> dict:
  """Undoes `_to_tree`: attributes cannot be numerals, so those are indices."""

  def convert(node: Any) -> Any:
    if isinstance(node, dict):
      return {
        int(name) if name.isdecimal() else name: convert(child)
        for name, child in node.items()
      }
    return node

  return convert(tree)
