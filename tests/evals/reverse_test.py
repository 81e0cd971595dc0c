"""Reverse probing against the recording, by hand, and with users' tables."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression

from odc_jax import mesh as mesh_lib
from odc_jax.errors import UserError
from odc_jax.evals import linear, reverse
from odc_jax.logs import scalars
from odc_jax.passes.extract import Features
from odc_jax.results import attributes
from tests.evals.subjects import of_features
from tests.recordings import load


def test_the_probe_follows_the_recording(golden_reverse_probe, mesh):
  """Its objective by gradient descent, then what it tells of other images."""
  trace = load(golden_reverse_probe)
  n, _, m, k, steps = (int(x) for x in trace["hp"])
  rate, decay = (float(x) for x in trace["hpf"])
  padded = mesh_lib.divisible(n, mesh)
  x, y = np.zeros((padded, m), np.float32), np.full(padded, -1, np.int32)
  x[:n], y[:n] = trace["concepts"], trace["clusters"]
  x, y = jax.device_put((x, y), mesh_lib.rows(mesh))
  zeros, ones = jnp.zeros(m), jnp.ones(m)

  @jax.jit
  def descend(weights, bias):
    def step(parameters, _):
      weights, bias = parameters
      loss, (by_weights, by_bias) = linear._loss_and_gradients(
        weights, bias, x, y, zeros, ones, decay
      )
      loss -= decay / 2 * jnp.sum(jnp.square(weights))
      return (weights - rate * by_weights, bias - rate * by_bias), loss

    return jax.lax.scan(step, (weights, bias), None, length=steps)

  (weights, bias), losses = descend(jnp.zeros((m, k)), jnp.zeros(k))
  np.testing.assert_allclose(losses, trace["train_loss"], atol=1e-4)
  np.testing.assert_allclose(weights, trace["weight"], atol=1e-4)
  np.testing.assert_allclose(bias, trace["bias"], atol=1e-4)
  found = reverse.of_probe(
    np.asarray(weights),
    np.asarray(bias),
    trace["test_concepts"],
    trace["test_clusters"],
  )
  for value, name in (
    (found.cross_entropy, "test_cross_entropy"),
    (found.entropy, "test_entropy"),
    (found.nats, "information"),
    (found.share, "normalised_information"),
    (found.top1, "top1"),
  ):
    assert value == pytest.approx(float(trace[name]), abs=1e-4), name


def test_one_attribute_by_hand():
  """Even images: value a in clusters 0, 0; b in 1. Odd: a in 0, b in 0."""
  column = attributes.Column("c", ("a", "b"), np.array([0, 0, 0, 1, 1, -1]))
  found = reverse.of_column(column, np.array([0, 0, 0, 0, 1, 0]))
  # The clusters of all even images are shared 2 : 1.
  of_a, of_b = (2 + 2 / 3) / 3, (0 + 2 / 3) / 2
  assert found.cross_entropy == pytest.approx(-np.log([of_a, of_b]).mean())
  assert found.entropy == 0
  assert found.share == 0
  assert found.top1 == 0.5


def subject_of(mesh, labels, clusters, **others):
  n = len(labels)
  rows = jax.device_put(np.zeros((1024, 2), np.float32), mesh_lib.rows(mesh))
  keys = {i: f"{i:04}.png" for i in range(n)}
  data = Features(rows, rows, jnp.zeros((0, n), jnp.int8), labels, keys)
  config = {"num_clusters": 4, "eval": others}
  return of_features(data, clusters=clusters, config=config)._replace(mesh=mesh)


def test_a_table_tells_what_labels_do_not(mesh, tmp_path):
  """Clusters are twice the sign plus the colour; the label is the colour."""
  rng = np.random.default_rng(0)
  n = 600
  colour, sign, size = rng.integers(2, size=(3, n))
  clusters = 2 * sign + colour
  labels = np.where(np.arange(n) < 30, -1, colour).astype(np.int32)
  length = rng.normal(size=n) + 3 * sign
  # Another order, some images left out, and one that is nobody's.
  order = rng.permutation(n)[:580]
  rows = [
    "key,sign,size,a length",
    "gone.png,yes,1,0",
    *(
      f"{i:04}.png,{'yes' if sign[i] else 'no'},{size[i]},{length[i]:.4f}"
      for i in order
    ),
  ]
  path = tmp_path / "about.csv"
  path.write_text("\n".join(rows))
  run = subject_of(mesh, labels, clusters, attributes=str(path))
  found = dict(reverse.evaluate(run._replace(folder=tmp_path)))
  assert all(scalars.declared(name) for name in found)
  # Each of the two halves tells a bit of two, all together both.
  for name in ("labels", "sign"):
    assert found[f"eval/reverse_information_{name}"] == pytest.approx(
      np.log(2), abs=0.02
    )
    assert found[f"eval/reverse_share_{name}"] == pytest.approx(0.5, abs=0.02)
  assert abs(found["eval/reverse_share_size"]) < 0.03
  assert 0.25 < found["eval/reverse_share_a_length"] < 0.5
  assert found["eval/reverse_share_all"] > 0.9
  assert found["eval/reverse_top1_all"] > 0.95
  told = json.loads((tmp_path / "attributes.json").read_text())
  assert len(told) == 4
  for c, of_cluster in enumerate(told):
    assert {text for text, *_ in of_cluster[:2]} == {
      f"labels = {c % 2}",
      f"sign = {'yes' if c > 1 else 'no'}",
    }
    assert not [text for text, *_ in of_cluster if text.startswith("size")]
    for _, here, of_all in of_cluster[:2]:
      assert here == 1
      assert of_all == pytest.approx(0.5, abs=0.05)

  # The optimum is scikit-learn's.
  columns = reverse._columns(run, str(path))
  known = np.any([column.codes >= 0 for column in columns], axis=0)
  even, odd = (
    np.flatnonzero(known & (np.arange(n) % 2 == part)) for part in (0, 1)
  )
  theirs = LogisticRegression(tol=1e-8, max_iter=5000)
  theirs.fit(reverse._concepts(columns, even), clusters[even])
  expected = theirs.predict_log_proba(reverse._concepts(columns, odd))
  cross_entropy = -np.mean(expected[np.arange(len(odd)), clusters[odd]])
  ours = reverse._of_all(run, columns, clusters)
  assert ours.cross_entropy == pytest.approx(cross_entropy, abs=1e-3)

  # Without labels, by the places in a Parquet file.
  path = tmp_path / "about.parquet"
  pq.write_table(
    pa.table({"index": order, "sign": pa.array(sign[order] > 0)}), path
  )
  run = subject_of(mesh, 0 * labels - 1, clusters, attributes=str(path))
  alone = dict(reverse.evaluate(run))
  assert alone.keys() == {
    "eval/reverse_information_sign",
    "eval/reverse_share_sign",
  }
  # Without clusters, and without anything to tell them by.
  assert not list(reverse.evaluate(run._replace(clusters=None)))
  assert not list(reverse.evaluate(subject_of(mesh, 0 * labels - 1, clusters)))


def test_a_cluster_without_an_image_to_learn_from_does_not_count(mesh):
  labels = np.array([0, 0, 1, 1, 0, 0], np.int32)
  # The odd image of cluster 3 is the only one in it.
  run = subject_of(mesh, labels, np.array([0, 0, 2, 2, 0, 3]))
  found = dict(reverse.evaluate(run))
  _, own = np.unique([0, 0, 2, 2, 0], return_inverse=True)
  column = attributes.Column("c", ("0", "1"), labels[:5])
  expected = reverse.of_column(column, own)
  assert found["eval/reverse_information_labels"] == pytest.approx(
    expected.nats
  )


@pytest.mark.parametrize(
  ("text", "says"),
  [
    (None, "cannot be read as CSV"),
    ("key\n0001.png\n", "has no column of attributes"),
    ("name,a\n0001.png,1\n", "neither a column key nor index"),
    ("key,a\n1.png,1\n", "names them like '1.png', the data set like '0000"),
    ("key,all\n0001.png,1\n", "call the column 'all' something else"),
    ("index,a\n1,2026-11-30\n", "the column 'a' is of date32"),
  ],
)
def test_mistakes(text, says, tmp_path):
  path = tmp_path / "about.csv"
  if text is not None:
    path.write_text(text)
  with pytest.raises(UserError, match=says):
    attributes.read(path, {0: "0000.png", 1: "0001.png"}, 2)


def test_names_of_images_are_no_attribute(tmp_path):
  path = tmp_path / "about.csv"
  rows = [f"{i},n{i}" for i in range(1001)]
  path.write_text("\n".join(["index,a", *rows]))
  with pytest.raises(UserError, match="names the images rather than"):
    attributes.read(path, dict.fromkeys(range(1001), ""), 1001)
