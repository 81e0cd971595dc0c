"""One clustering of many, by hand and by what must not matter."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from odc_jax import mesh as mesh_lib
from odc_jax.clustering import ensemble
from odc_jax.plan import collectives


def put(mesh, assignments, k):
  """Splits rows over the devices, behind them those of no image."""
  n, h = np.shape(assignments)
  padded = np.full((mesh_lib.padded_rows(n + 1), h), k, np.int32)
  padded[:n] = assignments
  return jax.device_put(padded, mesh_lib.rows(mesh))


def test_three_heads_by_hand(mesh):
  """The second has the first's clusters under other numbers; the third errs."""
  heads = [[0, 0, 0, 1, 1, 2], [2, 2, 2, 0, 0, 1], [1, 1, 0, 0, 0, 2]]
  found = ensemble.agree(put(mesh, np.transpose(heads), 3), 3, [0, 1, 2])
  np.testing.assert_array_equal(found.clusters[:7], [0, 0, 0, 1, 1, 2, 3])
  np.testing.assert_allclose(
    found.confidence[:7], [1, 1, 2 / 3, 1, 1, 1, 0], rtol=1e-6
  )
  np.testing.assert_array_equal(found.names, [[0, 1, 2], [1, 2, 0], [1, 0, 2]])


def test_an_image_that_a_head_has_not_seen(mesh):
  heads = np.array([[0, 0, 1, 1], [1, 2, 0, 0]]).T
  found = ensemble.agree(put(mesh, heads, 2), 2, [1, 0])
  # The second image has one vote; the numbers are the second head's.
  np.testing.assert_array_equal(found.clusters[:4], [1, 1, 0, 0])
  np.testing.assert_array_equal(found.confidence[:4], [1, 0.5, 1, 1])


def test_copies_of_one_partition_return_it(mesh):
  rng = np.random.default_rng(0)
  truth = rng.integers(7, size=500)
  heads = [rng.permutation(7)[truth] for _ in range(5)]
  order = [3, 0, 4, 1, 2]
  found = ensemble.agree(put(mesh, np.transpose(heads), 7), 7, order)
  np.testing.assert_array_equal(found.clusters[:500], heads[3])
  np.testing.assert_array_equal(found.confidence[:500], 1)


def noisy(rng, num_heads, k, n, noise):
  truth = rng.integers(k, size=n)
  heads = np.stack([rng.permutation(k)[truth] for _ in range(num_heads)], 1)
  wrong = rng.random(heads.shape) < noise
  return truth, np.where(wrong, rng.integers(k, size=heads.shape), heads)


def test_many_that_err_at_random_are_right_together(mesh):
  truth, heads = noisy(np.random.default_rng(0), 15, 6, 1200, 0.5)
  found = ensemble.agree(put(mesh, heads, 6), 6, range(15))
  clusters = np.asarray(found.clusters)[:1200]
  table = np.zeros((6, 6), int)
  np.add.at(table, (truth, clusters), 1)
  assert (table.max(axis=1) > 0.95 * table.sum(axis=1)).all()
  assert len(set(table.argmax(axis=1))) == 6
  # Of 15, half are drawn anew, and a sixth of those are right by chance.
  assert 0.5 < found.confidence[:1200].mean() < 0.65


def test_devices_and_the_heads_numbers_do_not_matter():
  rng = np.random.default_rng(1)
  _, heads = noisy(rng, 6, 5, 700, 0.7)
  found = []
  for devices in (1, 2, 8):
    mesh = mesh_lib.make_mesh(devices)
    with jax.set_mesh(mesh):
      found.append(ensemble.agree(put(mesh, heads, 5), 5, range(6)))
  for other in found[1:]:
    jax.tree.map(np.testing.assert_array_equal, found[0], other)
  # The first head's numbers stay, or its ties would be broken differently.
  renamed = heads.copy()
  for head in range(1, 6):
    renamed[:, head] = rng.permutation(5)[heads[:, head]]
  mesh = mesh_lib.make_mesh(8)
  with jax.set_mesh(mesh):
    again = ensemble.agree(put(mesh, renamed, 5), 5, range(6))
  np.testing.assert_array_equal(again.clusters, found[0].clusters)
  np.testing.assert_array_equal(again.confidence, found[0].confidence)


def agreeing_pairs(heads, names):
  named = np.stack([names[h][heads[:, h]] for h in range(heads.shape[1])], 1)
  return np.sum(named[:, :, None] == named[:, None, :])


@pytest.mark.parametrize("seed", range(3))
def test_no_numbering_of_three_heads_agrees_better(seed):
  rng = np.random.default_rng(seed)
  _, heads = noisy(rng, 3, 3, 60, 0.4)
  mesh = mesh_lib.make_mesh(1)
  with jax.set_mesh(mesh):
    found = ensemble.agree(put(mesh, heads, 3), 3, range(3))
  numberings = list(itertools.permutations(range(3)))
  most = max(
    agreeing_pairs(heads, np.array([(0, 1, 2), second, third]))
    for second in numberings
    for third in numberings
  )
  assert agreeing_pairs(heads, found.names) == most


def test_new_images_are_voted_on_by_the_same_names(mesh):
  _, heads = noisy(np.random.default_rng(2), 4, 5, 400, 0.3)
  found = ensemble.agree(put(mesh, heads, 5), 5, range(4))
  clusters, confidence = ensemble.vote(put(mesh, heads[:50], 5), found.names)
  np.testing.assert_array_equal(clusters[:50], found.clusters[:50])
  np.testing.assert_array_equal(confidence[:50], found.confidence[:50])


def test_only_a_table_travels():
  mesh = mesh_lib.make_mesh(8)
  h, k = 12, 16

  def moved(n):
    rows = jax.ShapeDtypeStruct((n, h), jnp.int32, sharding=mesh_lib.rows(mesh))
    names = jax.ShapeDtypeStruct((h, k), jnp.int32)
    voters = jax.ShapeDtypeStruct((h,), bool)
    head = jax.ShapeDtypeStruct((), jnp.int32)
    with jax.set_mesh(mesh):
      table = ensemble._table.lower(rows, names, voters, head).compile()
      votes = ensemble._vote.lower(rows, names).compile()
    assert not collectives.collectives(votes.as_text())
    return collectives.collectives(table.as_text())

  assert (
    moved(8 * 1024)
    == moved(64 * 1024)
    == [("all-reduce", f"s32[{k},{k}]", 4 * k * k)]
  )
