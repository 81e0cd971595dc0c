"""What a frozen network and its clusters are worth.

An evaluator takes a `Subject` and yields (name, value); without labels to
compare with, nothing.
"""

from odc_jax.evals import clustering, knn

EVALS = {"knn": knn.evaluate, "clustering": clustering.evaluate}
