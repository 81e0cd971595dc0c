"""The files that a run leaves: a row for every image, and the clusters.

    embeddings.npy     unit embeddings, behind the neck, float16 [n, d]
    centroids.npy      means of the clusters' embeddings, float32 [k, d]
    features.npy       backbone features: principal components, scaled to unit
                       length, float16 [n, p]
    components.npz     `mean` [c] and `components` [p, c] that made them
    clusters.parquet   a row for every image that can be read (`table.COLUMNS`)
    segments.parquet   of sequences: runs of equal clusters (`segments.COLUMNS`)
    clusters.json      the clusters, how they merge, advice on their number

docs/results.md explains every number and says which libraries were weighed.
"""
