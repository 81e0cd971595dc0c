"""Classification losses on logits. No models, no memories."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def cross_entropy(
  logits: Float[Array, "b k"], clusters: Int[Array, "b"]
) -> Float[Array, "b"]:
  """Returns -log softmax(logits)[cluster] of every example, in float32."""
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
  return -jnp.take_along_axis(log_p, clusters[:, None], axis=1)[:, 0]


def soft_cross_entropy(
  logits: Float[Array, "b k"], targets: Float[Array, "b k"]
) -> Float[Array, "b"]:
  """Returns -sum_k target_k log softmax(logits)_k, in float32."""
  return -jnp.sum(
    targets * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=1
  )


def weighted_cross_entropy(
  logits: Float[Array, "b k"],
  clusters: Int[Array, "b"],
  class_weights: Float[Array, "k"],
  group_size: int = 0,
) -> Float[Array, ""]:
  """Cross-entropy divided by the sum of the weights, not by the batch.

  The scale of `class_weights` therefore cancels, as it does in PyTorch's
  weighted mean.

  Args:
    logits: Scores of the classifier.
    clusters: Targets in [0, k).
    class_weights: A non-negative weight for every cluster.
    group_size: If positive, every `group_size` consecutive examples are
      normalised by their own weights and the groups are averaged: what data
      parallelism over devices with `group_size` images each computes. 0: the
      whole batch is one group.

  Returns:
    A scalar.

  Raises:
    ValueError: If `group_size` does not divide the batch.

  Source: OpenSelfSup models/heads/cls_head.py with the weights of
    models/odc.py:set_reweight.
  """
  batch_size = logits.shape[0]
  if group_size and batch_size % group_size:
    raise ValueError(
      f"group_size={group_size} does not divide the batch of {batch_size}"
    )
  groups = batch_size // group_size if group_size else 1
  weights = class_weights[clusters].reshape(groups, -1)
  losses = cross_entropy(logits, clusters).reshape(groups, -1)
  return jnp.mean(jnp.sum(weights * losses, axis=1) / jnp.sum(weights, axis=1))


def nt_xent(
  embeddings: Float[Array, "b v d"], temperature: float
) -> tuple[Float[Array, ""], Float[Array, ""]]:
  """Returns the normalised temperature-scaled cross-entropy, and an accuracy.

  s_ij = u_i u_j / temperature over all b v rows; the mean over these of
  -log(sum_positives e^s / sum_others e^s), where the positives are the other
  views of the row's image, summed inside the logarithm, and the others are all
  rows but itself, of the global batch. The accuracy is how often the most
  similar of the others is a positive.

  Args:
    embeddings: Unit rows u, of every view of a batch.
    temperature: Divides the cosines.

  Source: SimCLR tf2/objective.py: add_contrastive_loss, which has the sum over
    two views instead of their mean: v times this; solo-learn losses/simclr.py.
  """
  b, v, d = embeddings.shape
  # Examples stay side by side, so that no device hands over rows of its own.
  rows = embeddings.reshape(b * v, d)
  similarity = jnp.matmul(rows, rows.T, precision="highest") / temperature
  itself = jnp.arange(b * v)
  similarity = jnp.where(
    itself[:, None] == itself[None, :], -jnp.inf, similarity
  )
  own = (
    jnp.einsum("bvd,bwd->bvw", embeddings, embeddings, precision="highest")
    / temperature
  )
  own = jnp.where(jnp.eye(v, dtype=bool)[None], -jnp.inf, own)
  positives = jax.nn.logsumexp(own.reshape(b * v, v), axis=1)
  others = jax.nn.logsumexp(similarity, axis=1)
  hit = jnp.argmax(similarity, axis=1) // v == itself // v
  return jnp.mean(others - positives), jnp.mean(hit)


def accuracy(
  logits: Float[Array, "b k"], clusters: Int[Array, "b"]
) -> Float[Array, ""]:
  """Returns the fraction of examples whose largest logit is their cluster."""
  return jnp.mean(jnp.argmax(logits, axis=1) == clusters)
