"""DeepCluster's parts: clusters, what is drawn of them, and the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from odc_jax import labels as labels_lib
from odc_jax import mesh as mesh_lib
from odc_jax.errors import UserError
from odc_jax.methods import METHODS, deepcluster
from odc_jax.methods.method import Passes
from odc_jax.models.network import Outputs
from odc_jax.training import state as state_lib
from tests.recordings import load

METHOD = METHODS["deepcluster"]


def config_of(n=40, b=8, k=4, extra_clusters=(), seed=0, **changes):
  section = {
    "pca_dim": 3,
    "kmeans_iters": 20,
    "kmeans_init": "k-means++",
    "recluster_every": 1,
    "reweight_power": 0.0,
    "sampler": "facebook",
  }
  return ConfigDict(
    {
      "seed": seed,
      "num_examples": n,
      "batch_size": b,
      "num_clusters": k,
      "extra_clusters": extra_clusters,
      "model": {"group_size": 0},
      "deepcluster": section | changes,
    }
  )


def state_of(clusters, k):
  sizes = np.bincount(clusters, minlength=k)
  labels = labels_lib.no_labels(len(clusters), (k,))
  assignments = labels.assignments.at[: len(clusters), 0].set(clusters)
  return deepcluster.DeepClusterState(
    labels._replace(assignments=assignments), jnp.asarray(sizes, jnp.int32)
  )


def test_images_are_clustered_by_their_whitened_embeddings(mesh):
  """One direction's large variance hides the groups until it is whitened."""
  n, k = 200, 4
  config = config_of(n, k=k)
  rng = np.random.default_rng(0)
  groups = np.arange(n) % k
  embeddings = np.full((mesh_lib.padded_rows(n), 3), 1e6, np.float32)
  corners = np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]])
  embeddings[:n, :2] = corners[groups] + 0.1 * rng.normal(size=(n, 2))
  embeddings[:n, 2] = 1000 * rng.uniform(-1, 1, size=n)
  embeddings = jax.device_put(embeddings, mesh_lib.rows(mesh))
  asked = []

  def pass_over_images():
    asked.append(None)
    return embeddings

  passes = Passes(pass_over_images, lambda: None, lambda *_: (), None)
  state = METHOD.init(config, n, None)
  assert (state.samples.assignments == k).all()
  state = METHOD.recluster(config, state, passes, 0)
  first = np.asarray(METHOD.clusters(state))
  assert (first[n:] == k).all()
  np.testing.assert_array_equal(np.bincount(first[:n]), state.sizes)
  assert len({*zip(first[:n], groups, strict=True)}) == k
  assert (METHOD.previous_clusters(state) == k).all()

  # Another step is another start; the same step is the same.
  second = METHOD.recluster(config, state, passes, 5)
  again = METHOD.recluster(config, state, passes, 5)
  assert len(asked) == 3
  np.testing.assert_array_equal(METHOD.previous_clusters(second), first)
  jax.tree.map(np.testing.assert_array_equal, second, again)
  assert (METHOD.clusters(second) != first).any()


def test_which_epochs_begin_with_a_clustering():
  config = config_of(n=43, b=8, recluster_every=2)  # 5 steps each
  due = [step for step in range(31) if METHOD.recluster_due(config, step)]
  assert due == [0, 10, 20, 30]


def test_openselfsup_samples_as_recorded(golden_deepcluster_sampler):
  trace = load(golden_deepcluster_sampler)
  n = len(trace["labels"])
  config = config_of(n, b=64, k=int(trace["K"]), sampler="openselfsup")
  steps_per_epoch = n // 64
  drawn = METHOD.sampler(config, trace["labels"], 5 * steps_per_epoch)
  np.testing.assert_array_equal(
    drawn, trace["oss_unif_indices_epoch5"][: steps_per_epoch * 64]
  )


@pytest.mark.parametrize("sampler", ["facebook", "openselfsup"])
def test_what_is_drawn_follows_from_seed_and_step(sampler):
  clusters = np.repeat([0, 1, 2, 3], [1, 2, 10, 30])
  config = config_of(43, recluster_every=3, sampler=sampler)
  drawn = METHOD.sampler(config, clusters, 15)
  assert len(drawn) == 3 * 5 * 8  # whole batches of three epochs
  assert np.bincount(clusters[drawn], minlength=4).min() > 20
  np.testing.assert_array_equal(METHOD.sampler(config, clusters, 15), drawn)
  assert (METHOD.sampler(config, clusters, 30) != drawn).any()
  config.seed = 1
  assert (METHOD.sampler(config, clusters, 15) != drawn).any()


def test_no_sampler_leaves_the_order_to_the_data():
  config = config_of(sampler="none")
  assert METHOD.sampler(config, np.zeros(40, np.int32), 0) is None


def test_class_weights_as_recorded(golden_deepcluster_sampler):
  trace = load(golden_deepcluster_sampler)
  sizes = np.bincount(trace["labels"], minlength=int(trace["K"]))
  np.testing.assert_allclose(
    deepcluster.class_weights(jnp.asarray(sizes), 0.5),
    trace["reweight_deepcluster"],
    rtol=1e-5,
  )


@pytest.mark.parametrize(
  ("power", "by_hand"),
  # Of clusters of 4, 1 and 1 images: plain, and weighted by 1/2, 1 and 1.
  [(0.0, (0 + 0 + 1 + 2) / 4), (0.5, (0 + 0 + 1 + 2) / 3)],
)
def test_loss_by_hand(power, by_hand):
  state = state_of(np.array([0, 0, 0, 0, 1, 2]), 3)
  config = config_of(6, k=3, reweight_power=power)
  index = jnp.array([1, 3, 4, 5], jnp.int32)
  targets = METHOD.targets(config, state, (), {"index": index}, 0)
  np.testing.assert_array_equal(targets.clusters, [0, 0, 1, 2])
  # -log softmax of the target: 0, 0, 1 and 2, to float precision.
  away = -100.0
  one, two = -jnp.log(jnp.expm1(jnp.array([1.0, 2.0])))
  logits = jnp.array(
    [[0, away, away], [0, away, away], [0, one, away], [0, away, two]]
  )
  views = (Outputs(logits, logits, (logits,)),)
  value, scalars = METHOD.loss(config, views, targets, state)
  np.testing.assert_allclose(value, by_hand, rtol=1e-6)
  assert scalars["train/cluster_accuracy"] == 0.5


def test_a_step_changes_no_cluster(mesh):
  config = config_of()
  state = state_of(np.arange(40) % 3, 4)
  state = jax.device_put(state, state_lib.shardings(state, mesh))
  after, scalars = METHOD.after_step(config, state, (), None, {}, 0)
  jax.tree.map(np.testing.assert_array_equal, after, state)
  assert scalars["cluster/empty"] == 1
  assert scalars["cluster/max_size"] == 14


@pytest.mark.parametrize(
  ("changes", "named"),
  [
    ({"sampler": "uniform"}, "facebook, openselfsup, none"),
    ({"kmeans_init": "zeros"}, "kmeans_init"),
    ({"recluster_every": 0}, "recluster_every=0"),
    ({"extra_clusters": (5,)}, "extra_clusters"),
  ],
)
def test_mistakes(changes, named):
  with pytest.raises(UserError, match=named):
    METHOD.init(config_of(**changes), 40, None)
