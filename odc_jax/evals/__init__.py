"""What a frozen network and its clusters are worth.

An evaluator is a module with `evaluate(config, train, test, clusters)`, which
yields (name, value).
"""

from odc_jax.evals import clustering, knn

EVALS = {"knn": knn, "clustering": clustering}
