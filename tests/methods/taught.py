"""The recorded networks of BYOL, SimCLR and others, and their steps."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from odc_jax import mesh as mesh_lib
from odc_jax.methods import METHODS
from odc_jax.models import backbone as backbone_lib
from odc_jax.models.functional import functional
from odc_jax.training import optim
from odc_jax.training import state as state_lib
from odc_jax.training import step as step_lib


class Backbone(backbone_lib.Backbone):
  """One linear layer and a ReLU."""

  def __init__(self, size_in, size_out, rngs):
    self.fc = nnx.Linear(size_in, size_out, rngs=rngs)

  def __call__(self, x):
    return [jax.nn.relu(self.fc(x))]


def linear(trace, name):
  """Returns a recorded layer, out x in, as ours, in x out."""
  found = {"kernel": jnp.asarray(trace[f"{name}.weight"].T)}
  if f"{name}.bias" in trace:
    found["bias"] = jnp.asarray(trace[f"{name}.bias"])
  return found


def projection(trace, name, layers, norms):
  """Returns params and statistics of a recorded `heads.Projection`.

  Args:
    trace: The recording.
    name: Of the part, with the prefix.
    layers: Numbers of its linear layers.
    norms: Numbers of its BatchNorms; without recorded statistics there are
      none in the result.
  """
  params: dict = {
    "layers": {
      str(i): linear(trace, f"{name}.{n}") for i, n in enumerate(layers)
    },
    "norms": {},
  }
  stats: dict = {"norms": {}}
  for i, n in enumerate(norms):
    params["norms"][str(i)] = {
      "scale": jnp.asarray(trace[f"{name}.{n}.weight"]),
      "bias": jnp.asarray(trace[f"{name}.{n}.bias"]),
    }
    if f"{name}.{n}.running_mean" in trace:
      stats["norms"][str(i)] = {
        "mean": jnp.asarray(trace[f"{name}.{n}.running_mean"]),
        "var": jnp.asarray(trace[f"{name}.{n}.running_var"]),
      }
  return params, stats


def assert_close(tree, expected, atol):
  """Compares what is expected; the tree may hold more."""
  if isinstance(expected, dict):
    for name, part in expected.items():
      assert_close(tree[name], part, atol)
    return
  np.testing.assert_allclose(tree, expected, atol=atol, rtol=0)


class Replay:
  """A method's step on the recorded views.

  Attributes:
    state: As the method begins; to be given the recorded weights.
  """

  def __init__(self, trace, config, name, make, mesh, monkeypatch):
    """Prepares the step.

    Args:
      trace: The recording, with `lr` and `batch_sizes`.
      config: Its experiment.
      name: Of the method.
      make: rngs -> its network (`network_of`).
      mesh: The devices.
      monkeypatch: Makes the recorded learning rates the schedule.
    """
    rates = jnp.asarray(trace["lr"])
    monkeypatch.setattr(optim, "schedule", lambda *_: lambda step: rates[step])
    self._method, self._network = METHODS[name], functional(make)
    self._config, self._mesh = config, mesh
    steps = config.num_examples // config.batch_size
    optimizer = optim.make(config.optimizer, steps)
    init = state_lib.init_function(
      config, self._method, self._network, optimizer, config.num_examples
    )
    self._shardings = state_lib.shardings(jax.eval_shape(init), mesh)
    self.state = jax.jit(init, out_shardings=self._shardings)()
    self._targets = jax.jit(
      lambda state, images: self._targets_of(
        state, self._views(state, state.params, images)
      )
    )
    self._step = jax.jit(
      step_lib.make_step(
        config,
        self._method,
        self._network,
        optimizer,
        lambda key, images, index: images,
      ),
      donate_argnums=0,
      out_shardings=(self._shardings, None, None),
    )

  def start(self, **parts):
    """Puts the recorded start in place; what is not given stays."""
    copied = jax.tree.map(jnp.array, parts)
    self.state = jax.device_put(self.state._replace(**copied), self._shardings)

  def look(self, *kinds):
    """Returns what the networks make of views: the student's, the teacher's."""
    images = tuple(self._stacked(kind) for kind in kinds)
    return jax.jit(self._views)(self.state, self.state.params, images)

  def targets(self, *kinds):
    """Returns the targets of the step to come."""
    images = tuple(self._stacked(kind) for kind in kinds)
    return self._targets(self.state, images)

  def gradients(self, *kinds):
    """Returns the gradient of the loss of the step to come, without decay."""
    images = tuple(self._stacked(kind) for kind in kinds)

    def loss(params):
      views = self._views(self.state, params, images)
      targets = jax.lax.stop_gradient(self._targets_of(self.state, views))
      return self._method.loss(self._config, views, targets, self.state.method)[
        0
      ]

    return jax.jit(jax.grad(loss))(self.state.params)

  def _views(self, state, params, images):
    """Returns the outputs as a step has them."""
    state = step_lib._with_teacher(
      self._config, self._method, state, state.params, "first"
    )
    student, _ = self._network.apply(
      params, state.batch_stats, images, None, train=True
    )
    teacher, _ = step_lib._by_teacher(self._network, state, images, None)
    return student if teacher is None else step_lib.Views(student, teacher)

  def _targets_of(self, state, views):
    return self._method.targets(
      self._config, state.method, views, {}, state.step
    )

  def step(self, *kinds):
    """Takes a step on views [b, size], kind by kind; returns its scalars."""
    images = tuple(self._stacked(kind) for kind in kinds)
    b = images[0].shape[0]
    batch = {"image": images, "index": np.arange(b, dtype=np.int32)}
    batch = jax.device_put(batch, mesh_lib.rows(self._mesh))
    self.state, scalars, finite = self._step(self.state, batch)
    assert all(finite.values())
    return scalars

  @staticmethod
  def _stacked(views):
    return jnp.stack([jnp.asarray(v) for v in views], axis=1)[
      :, :, None, None, :
    ]
