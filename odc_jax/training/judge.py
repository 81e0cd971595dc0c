"""Judges images by the clusters: cosines, margins, confidence."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from odc_jax.clustering import spherical
from odc_jax.config import Config


class Judgement(NamedTuple):
  """The places of images among the clusters.

  Attributes:
    cluster: The one that is judged.
    nearest: The cluster of the most similar centroid.
    similarity: Cosine of the embedding with the centroid of `cluster`.
    second_cluster: The most similar of the others, by the cosine.
    margin: `similarity` minus the cosine with that one's centroid; below zero
      where the other is more similar.
    confidence: The classifier's probability of the cluster, or the share of
      the heads that vote for it.
  """

  cluster: Int[Array, "b"]
  nearest: Int[Array, "b"]
  similarity: Float[Array, "b"]
  second_cluster: Int[Array, "b"]
  margin: Float[Array, "b"]
  confidence: Float[Array, "b"]


def make_judge(config: Config, method: Any, head: Callable[..., Any]):
  """Returns `judge(params, centroids, embeddings, clusters, state)`.

  It returns a `Judgement` of embeddings [b, d] of the network in evaluation
  mode among centroids [k, d], for the given clusters [b] or, where these are
  -1, for the nearest, or that which the heads vote for. `params` are what
  decides (`Program.evaluated`); `state` is the method's, where it votes. A
  cluster whose centroid is zero is empty, and near to nothing. [b, k] scores
  exist at once.

  Args:
    config: The experiment.
    method: One of `METHODS`. Where it has no head, the cosines are its logits.
    head: As `Program` has it.
  """

  def judge(params, centroids, embeddings, clusters, state=None):
    cosines = jnp.matmul(
      spherical.normalize(embeddings),
      spherical.normalize(centroids).T,
      precision="highest",
    )
    is_empty = ~jnp.any(centroids != 0, axis=1)
    cosines = jnp.where(is_empty[None, :], -1.0, cosines)
    nearest = jnp.argmax(cosines, axis=1).astype(jnp.int32)
    best, probabilities = nearest, None
    if method.vote is not None:
      probabilities = method.vote(state, head(params, embeddings))
      best = jnp.argmax(probabilities, axis=1).astype(jnp.int32)
    cluster = jnp.where(clusters < 0, best, clusters)
    similarity = _entry(cosines, cluster)
    is_own = jnp.arange(cosines.shape[1])[None, :] == cluster[:, None]
    others = jnp.where(is_own, -jnp.inf, cosines)
    if probabilities is None:
      logits = cosines
      if method.HEAD != "none":
        logits, *_ = head(params, embeddings)
      probabilities = jax.nn.softmax(logits / method.temperature(config))
    return Judgement(
      cluster,
      nearest,
      similarity,
      jnp.argmax(others, axis=1).astype(jnp.int32),
      similarity - jnp.max(others, axis=1),
      _entry(probabilities, cluster),
    )

  return judge


def _entry(scores, clusters):
  """Returns scores[i, clusters[i]]."""
  return jnp.take_along_axis(scores, clusters[:, None], axis=1)[:, 0]
