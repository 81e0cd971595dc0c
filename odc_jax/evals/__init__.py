"""Evaluators of a frozen network and of its clusters.

An evaluator takes a `Subject` and yields (name, value); without labels to
compare with, nothing. docs/evaluation.md has their protocols and what they
take.
"""

from odc_jax.evals import (
  clustering,
  knn,
  linear,
  retrieval,
  reverse,
  segmentation,
  semi,
  svm,
)

EVALS = {
  "knn": knn.evaluate,
  "clustering": clustering.evaluate,
  "assignment": clustering.assignment,
  "kmeans": clustering.kmeans,
  "segmentation": segmentation.evaluate,
  "retrieval": retrieval.evaluate,
  "reverse": reverse.evaluate,
  "linear": linear.last_lbfgs,
  "linear_sgd": linear.last_sgd,
  "linear_stages": linear.stages_sgd,
  "svm": svm.full,
  "low_shot": svm.low_shot,
  "semi": semi.evaluate,
}

# Those that look at sequences of frames.
OF_SEQUENCES = ("segmentation",)

# Those that read images, in other crops than the features are of.
OF_IMAGES = ("linear_sgd", "linear_stages", "svm", "low_shot", "semi")
