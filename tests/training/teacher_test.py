"""A teacher in the step: when it moves, what of it, and what it sees."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from odc_jax.errors import UserError
from odc_jax.methods.method import Method, Teacher, evaluates_teacher
from odc_jax.models.functional import Functional
from odc_jax.models.network import Outputs
from odc_jax.training import state as state_lib
from odc_jax.training.step import make_step


def apply(params, batch_stats, images, key, train):
  """Returns body * head * x of every view; the mean counts the views seen."""
  del key, train
  views = tuple(
    Outputs(x, params["body"] * params["head"] * x)
    for kind in images
    for x in kind.transpose(1, 0, 2)
  )
  return views, {"body": batch_stats["body"] + len(views)}


NETWORK = Functional(
  lambda key: (
    {name: jnp.float32(2) for name in ("body", "head", "predictor")},
    {"body": jnp.float32(0)},
  ),
  apply,
  lambda *_: None,
)


def step_of(**teacher):
  """Returns a step whose student moves by -1, and the state it starts with."""
  method = Method(
    NAME="",
    init=lambda config, num_examples, key: (),
    targets=lambda config, state, views, batch, step: (
      views.teacher[0].embeddings
    ),
    loss=lambda config, views, targets, state: (
      sum(jnp.mean(v.embeddings) for v in views.student),
      {"seen": targets[0, 0], "views": jnp.array([*map(len, views)])},
    ),
    after_step=lambda config, state, *_: (state, {}),
    teacher=Teacher(
      decay=lambda config, step: 0.75 + 0.25 * step,
      evaluated=lambda config: True,
      lacks=("predictor",),
      **teacher,
    ),
  )
  optimizer = optax.chain(optax.sign_sgd(1.0))
  config = ConfigDict({"seed": 0})
  state = state_lib.init_function(config, method, NETWORK, optimizer, 4)()
  step = make_step(
    config, method, NETWORK, optimizer, lambda key, images, index: images
  )
  kinds = (jnp.ones((1, 2, 1)), jnp.ones((1, 3, 1)))
  return step, state, {"image": kinds, "index": jnp.array([0])}


@pytest.mark.parametrize(
  ("moves", "seen", "body"),
  [
    # The student is at 2 and then at 1, the teacher starts at 4 and at 2.
    ("first", 3.5 * 2, 3.5),
    ("before", 4 * 2, 3.5),
    ("after", 4 * 2, 3.25),
  ],
)
def test_when_a_teacher_moves(moves, seen, body):
  step, state, batch = step_of(moves=moves)
  assert set(state.teacher) == {"body", "head"}
  state = state._replace(teacher=state.teacher | {"body": jnp.float32(4)})
  state, scalars, _ = step(state, batch)
  assert scalars["seen"] == seen
  np.testing.assert_array_equal(scalars["views"], [5, 2])
  assert state.params["body"] == 1
  assert state.teacher["body"] == body
  # Five views by the student, the two large ones by the teacher.
  assert state.batch_stats["body"] == 5
  assert state.teacher_stats["body"] == 2
  # The second step's decay is 1.
  state, _, _ = step(state, batch)
  assert state.teacher["body"] == body
  params, batch_stats = state_lib.taught(state)
  assert params["body"] == body
  assert params["predictor"] == state.params["predictor"]
  assert batch_stats["body"] == 4


def test_what_is_copied_and_whose_statistics():
  step, state, batch = step_of(
    moves="after", copied=("head",), statistics=False
  )
  assert state.teacher_stats is None
  state, _, _ = step(state, batch)
  assert state.teacher_stats is None
  assert state.teacher["head"] == state.params["head"] == 1
  assert state.teacher["body"] == 0.75 * 2 + 0.25 * 1
  assert state_lib.taught(state)[1]["body"] == 5


def test_a_frozen_part_has_no_teacher():
  state = step_of(moves="after")[1]
  method = Method("", *[lambda *_: None] * 4)
  config = ConfigDict({"with": True})
  assert state_lib.with_copied_teacher(state, config, method) is state
  method = Method(
    "",
    *[lambda *_: None] * 4,
    teacher=Teacher(
      lambda *_: 0.5,
      "after",
      lambda _: False,
      present=lambda config: config["with"],
    ),
  )
  found = state_lib.with_copied_teacher(state, config, method, ("body",))
  assert set(found.teacher) == {"head", "predictor"}
  assert found.teacher_stats == {}
  moved = jax.tree.map(jnp.shape, found.teacher)
  assert moved == {"head": (), "predictor": ()}
  config["with"] = False
  assert state_lib.with_copied_teacher(state, config, method) is state


def test_the_network_that_is_asked_for():
  config = ConfigDict({"eval": {"network": "teacher"}})
  assert evaluates_teacher(config)
  config.eval.network = "student"
  assert not evaluates_teacher(config)
  config.eval.network = "other"
  with pytest.raises(UserError, match="'other'; choose student or teacher"):
    evaluates_teacher(config)
