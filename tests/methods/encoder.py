"""The small network of the recorded SeCu and CoKe trainings, and its steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from odc_jax import mesh as mesh_lib
from odc_jax.methods import METHODS
from odc_jax.models import backbone as backbone_lib
from odc_jax.models import heads
from odc_jax.models.functional import functional
from odc_jax.models.network import Network
from odc_jax.training import optim
from odc_jax.training import state as state_lib
from odc_jax.training import step as step_lib


class Backbone(backbone_lib.Backbone):
  """One linear layer and a ReLU."""

  def __init__(self, size_in, size_out, rngs):
    self.fc = nnx.Linear(size_in, size_out, rngs=rngs)

  def __call__(self, x):
    return [jax.nn.relu(self.fc(x))]


def sizes_of(trace):
  """Returns n, size of an image, hidden size, d, steps an epoch, epochs."""
  n, size_in, hidden, d, _, _, steps, epochs = (int(x) for x in trace["hp"][:8])
  return n, size_in, hidden, d, steps, epochs


def optimizer_section(trace, name, learning_rate, momentum, decay, **more):
  """Returns the recordings' optimiser; the rate is checked against theirs."""
  section = ConfigDict(
    {
      "name": name,
      "learning_rate": learning_rate,
      "momentum": momentum,
      "weight_decay": decay,
      "schedule": "cosine",
      "num_epochs": sizes_of(trace)[-1],
      "hold_epochs": 1,
      "warmup_epochs": 10,
      **more,
    }
  )
  schedule = optim.schedule(section, sizes_of(trace)[-2])
  steps = jnp.arange(len(trace["lr"]))
  np.testing.assert_allclose(
    jax.vmap(schedule)(steps), trace["lr"], rtol=1e-5, atol=1e-9
  )
  return section


def network_of(trace, num_clusters):
  """Returns the recorded network; centres in the head if there are any."""
  _, size_in, hidden, d, *_ = sizes_of(trace)
  depth = sum(f"w_start/encoder.fc.{3 * i}.weight" in trace for i in range(3))
  predicts = "w_start/predictor.0.weight" in trace

  def make(rngs):
    return Network(
      Backbone(size_in, hidden, rngs),
      heads.Projection(
        (hidden,) * depth + (d,), norm_last=depth > 2, rngs=rngs
      ),
      heads.Centers(d, num_clusters, rngs=rngs) if num_clusters else None,
      heads.Projection((d, hidden, d), rngs=rngs) if predicts else None,
      unit=True,
      views_together=False,
    )

  return functional(make)


def weights_of(trace, prefix):
  """Returns recorded params and statistics as our trees, in x out."""

  def linear(name):
    return {
      "kernel": jnp.asarray(trace[f"{prefix}/{name}.weight"].T),
      "bias": jnp.asarray(trace[f"{prefix}/{name}.bias"]),
    }

  def projection(name):
    params, stats = {"layers": {}, "norms": {}}, {"norms": {}}
    for i in range(3):
      if f"{prefix}/{name}.{3 * i}.weight" in trace:
        params["layers"][str(i)] = linear(f"{name}.{3 * i}")
      norm = f"{prefix}/{name}.{3 * i + 1}"
      if f"{norm}.weight" in trace:
        params["norms"][str(i)] = {
          "scale": jnp.asarray(trace[f"{norm}.weight"]),
          "bias": jnp.asarray(trace[f"{norm}.bias"]),
        }
        stats["norms"][str(i)] = {
          "mean": jnp.asarray(trace[f"{norm}.running_mean"]),
          "var": jnp.asarray(trace[f"{norm}.running_var"]),
        }
    return params, stats

  params, stats = {"backbone": {"fc": linear("encoder.body")}}, {}
  params["neck"], stats["neck"] = projection("encoder.fc")
  if f"{prefix}/predictor.0.weight" in trace:
    params["predictor"], stats["predictor"] = projection("predictor")
  if f"{prefix}/center_0" in trace:
    kernels = (trace[f"{prefix}/center_{h}"] for h in range(len(trace["Ks"])))
    params["head"] = {
      "kernels": {str(h): jnp.asarray(x) for h, x in enumerate(kernels)}
    }
  return params, stats


def assert_close(tree, expected, atol):
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=atol, rtol=0),
    tree,
    expected,
  )


def follow(trace, config, name, start, mesh, atol):
  """Trains freely from the recorded start on the recorded views.

  Args:
    trace: A recording.
    config: Its experiment.
    name: Of the method.
    start: The method's state -> that of the recording's start.
    mesh: The devices.
    atol: How far weights and statistics may be off after recorded epochs.

  Yields:
    Step, state after it, scalars, indices of the batch.
  """
  n, *_, steps, _ = sizes_of(trace)
  method = METHODS[name]
  ks = tuple(int(k) for k in trace["Ks"])
  network = network_of(trace, ks if method.HEAD != "none" else ())
  optimizer = optim.make(config.optimizer, steps)
  init = state_lib.init_function(config, method, network, optimizer, n)
  shardings = state_lib.shardings(jax.eval_shape(init), mesh)
  state = jax.jit(init, out_shardings=shardings)()
  params, batch_stats = weights_of(trace, "w_start")
  state = state._replace(
    params=params, batch_stats=batch_stats, method=start(state.method)
  )
  state = jax.device_put(state, shardings)
  step = jax.jit(
    step_lib.make_step(
      config, method, network, optimizer, lambda key, images, index: images
    ),
    donate_argnums=0,
    out_shardings=(shardings, None, None),
  )
  views = [trace[view] for view in ("view1", "view2") if view in trace]
  images = np.stack(views, axis=2)[:, :, :, None, None, :]
  for t, size in enumerate(int(size) for size in trace["batch_sizes"]):
    index = jnp.asarray(trace["target"][t, :size])
    batch = {"image": (jnp.asarray(images[t, :size]),), "index": index}
    batch = jax.device_put(batch, mesh_lib.rows(mesh))
    state, scalars, finite = step(state, batch)
    assert all(finite.values())
    yield t, state, scalars, index
    epoch = (t + 1) // steps - 1
    if (
      t + 1
    ) % steps == 0 and f"w_after_epoch{epoch}/encoder.body.bias" in trace:
      assert_close(
        (state.params, state.batch_stats),
        weights_of(trace, f"w_after_epoch{epoch}"),
        atol,
      )
