"""Work directories as a run leaves them, of made-up clusters."""

import json
import math
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from scipy.cluster import hierarchy

from configs import odc_digits
from odc_jax.config import check as config_lib
from odc_jax.config import store
from odc_jax.results import table

EPOCHS = 12
# Of the run whose page is driven in a browser: 8 clusters of 25 images, on 8
# places of a circle.
K, N = 8, 200
HOSTILE = [
  "<img src=x onerror=alert(1)>.png",
  "a</script><script>alert(2).png",
  'z" onmouseover="alert(3).png',
]


def write_images(folder, names, seed=0):
  """Writes a small image of a colour of its own under each name."""
  draw = np.random.default_rng(seed)
  for name in names:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = draw.integers(0, 256, 3)
    pixels = np.clip(colour + draw.integers(-20, 20, (24, 32, 3)), 0, 255)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def write_history(
  workdir, source, num_clusters, num_images, labelled=True, seed=0
):
  """Writes what a run under way has: config.json and metrics.jsonl."""
  config = odc_digits.get_config()
  config.num_clusters = num_clusters
  config.num_epochs = EPOCHS
  config.data.source = source
  config.seed = seed
  config.batch_size = min(64, num_images)
  config = config_lib.resolve(config, num_images, 1)
  workdir.mkdir(parents=True, exist_ok=True)
  store.write(config, workdir, resuming=False)
  with (workdir / "metrics.jsonl").open("w") as file:
    for step in range(10 * EPOCHS + 1):
      epoch = step / 10
      fall = math.exp(-epoch / 4)
      line = {"step": step, "epoch": epoch, "time": float(step)}
      if step and step % 2 == 0:
        line |= {
          "train/loss": math.log(num_clusters) * (0.3 + 0.7 * fall),
          "cluster/label_change": 0.02 + 0.5 * fall,
          "cluster/entropy": math.log(num_clusters) * 0.97,
        }
      if step and step % 10 == 0:
        line |= {
          "cluster/nmi_previous": 0.98 - 0.4 * fall,
          "cluster/empty": 0,
          "cluster/min_size": 1 + int(epoch),
          "cluster/max_size": num_images // 2,
        }
      if labelled and step % 50 == 0:
        line |= {
          "eval/knn_top1": 0.9 - 0.4 * fall,
          "eval/nmi_labels": 0.8 - 0.3 * fall,
          "eval/purity_labels": 0.85 - 0.3 * fall,
        }
      file.write(json.dumps(line) + "\n")


def _nearest(x, num=10):
  """Returns (rows, cosines) of the nearest others; of many rows, of any."""
  n = len(x)
  num = min(num, n - 1)
  if n <= 5000:
    cosine = x @ x.T
    np.fill_diagonal(cosine, -2)
    near = np.argsort(-cosine, axis=1, kind="stable")[:, :num]
    return near, np.take_along_axis(cosine, near, 1)
  near = (np.arange(n)[:, None] + np.arange(1, num + 1)) % n
  return near, np.broadcast_to(np.linspace(0.9, 0.5, num), near.shape)


def write_clusters(
  workdir,
  keys,
  embeddings,
  clusters,
  num_clusters,
  labels=None,
  num_groups=None,
  index=None,
  projection=None,
  duplicates=(),
):
  """Writes clusters.parquet, clusters.json and centroids.npy.

  Args:
    workdir: Where.
    keys: Of the images.
    embeddings: Of the images, [n, d].
    clusters: Of the images, int [n].
    num_clusters: K; those that no image is in are empty.
    labels: Of the images, -1 where unknown, or None.
    num_groups: A `group` column with that many.
    index: Of the images; default: 0, 1, ...
    projection: float [n, 2]; default: the first two dimensions.
    duplicates: Lists of rows that are near-duplicates of one another.
  """
  n, k = len(keys), num_clusters
  index = np.arange(n) if index is None else np.asarray(index)
  x = np.asarray(embeddings, np.float32)
  x = x / np.linalg.norm(x, axis=1, keepdims=True)
  sizes = np.bincount(clusters, minlength=k)
  order = np.argsort(clusters, kind="stable")
  starts = np.searchsorted(clusters[order], np.arange(k))
  sums = np.add.reduceat(np.vstack([x[order], 0 * x[:1]]), starts)
  centroids = np.where(sizes[:, None] > 0, sums, 1e-3)
  centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
  own, other, second = np.empty(n), np.empty(n), np.empty(n, int)
  for first in range(0, n, 4096):
    rows = slice(first, first + 4096)
    cosine = x[rows] @ centroids.T
    cosine[:, sizes == 0] = -2
    at = np.arange(len(cosine))
    own[rows] = cosine[at, clusters[rows]]
    cosine[at, clusters[rows]] = -3
    second[rows] = cosine.argmax(1)
    other[rows] = cosine[at, second[rows]]
  margin = own - other
  score = np.clip((1 - own) / max(1e-6, (1 - own).max()), 0, 1)
  threshold = np.quantile(score, 0.98)
  flagged = score > threshold
  duplicate = np.full(n, -1)
  for number, rows in enumerate(duplicates):
    duplicate[rows] = number
  projection = x[:, :2] if projection is None else projection
  tree = None
  if 2 <= k <= 20_000:
    tree = hierarchy.linkage(centroids, "average").tolist()
  columns = {
    "index": pa.array(index, pa.int64()),
    "key": pa.array(keys, pa.string()),
    "cluster": pa.array(clusters, pa.int32()),
    "cluster_size": pa.array(sizes[clusters], pa.int32()),
    "similarity": pa.array(own, pa.float32()),
    "second_cluster": pa.array(second, pa.int32()),
    "margin": pa.array(margin, pa.float32()),
    "confidence": pa.array(np.clip(own, 0, 1), pa.float32()),
    "outlier_score": pa.array(score, pa.float32()),
    "is_outlier": pa.array(flagged),
    "near_duplicate_group": pa.array(duplicate, pa.int32(), mask=duplicate < 0),
    "projection_x": pa.array(projection[:, 0], pa.float32()),
    "projection_y": pa.array(projection[:, 1], pa.float32()),
    "neighbors": table.neighbors_array(np.arange(n), *_nearest(x)),
  }
  if num_groups:
    cut = hierarchy.cut_tree(np.array(tree), num_groups)[:, 0]
    columns["cluster_group"] = pa.array(cut[clusters], pa.int32())
  if labels is not None:
    labels = np.asarray(labels)
    columns["label"] = pa.array(labels, pa.int32(), mask=labels < 0)
  pq.write_table(pa.table(columns), workdir / "clusters.parquet")
  np.save(workdir / "centroids.npy", centroids)

  def of_cluster(c):
    rows = order[starts[c] : starts[c] + sizes[c]]
    if not len(rows):
      return {
        "cluster": c,
        "size": 0,
        "cohesion": None,
        "second": None,
        "purity": None,
        "label": None,
        "representatives": [],
        "boundary": [],
        "outliers": [],
      }
    central = rows[np.argsort(-own[rows], kind="stable")]
    unlike = rows[flagged[rows]]
    counts = np.zeros(0)
    if labels is not None and (labels[rows] >= 0).any():
      counts = np.bincount(labels[rows][labels[rows] >= 0])
    between = centroids[c] @ centroids.T
    between[c] = -2
    return {
      "cluster": c,
      "size": len(rows),
      "cohesion": float(own[rows].mean()),
      "second": int(between.argmax()),
      "purity": float(counts.max() / counts.sum()) if len(counts) else None,
      "label": int(counts.argmax()) if len(counts) else None,
      "representatives": index[central[:8]].tolist(),
      "boundary": index[rows[np.argsort(margin[rows])[:4]]].tolist(),
      "outliers": index[unlike[np.argsort(-score[unlike])[:4]]].tolist(),
    }

  summary = {
    "num_clusters": k,
    "num_images": n,
    "num_groups": num_groups,
    "agreement": float((margin > 0).mean()),
    "outlier_threshold": float(threshold),
    "tree": tree,
    "cuts": [{"num_groups": g, "silhouette": 0.5 / g} for g in range(2, k)][:9],
    "best_num_groups": 2 if k > 2 else None,
    "advice": f"{k} clusters are about right for {n} images.",
    "clusters": [of_cluster(c) for c in range(k)],
  }
  (workdir / "clusters.json").write_text(json.dumps(summary))
  (workdir / "summary.json").write_text(
    json.dumps(
      {
        "eval/knn_top1": 0.9,
        "eval/knn_top1_k100": 0.8765,
        "cluster/nmi_previous": 0.98,
      }
    )
  )


def read(path, element="data"):
  """Returns what the page's script is given."""
  found = re.search(
    rf'<script type="application/json" id="{element}">(.*?)</script>',
    path.read_text(),
  )
  return json.loads(found[1])


def small_run(tmp_path, labelled=True, num_clusters=5, **options):
  """Writes a work directory over 60 images in 3 folders; returns both."""
  folder = tmp_path / "images"
  keys = [
    f"{name}/{i:02d}.png" for name in ("cat", "dog", "eel") for i in range(20)
  ]
  if not folder.exists():
    write_images(folder, keys)
  workdir = tmp_path / "run"
  write_history(
    workdir, f"folder:{folder}", num_clusters, len(keys), labelled=labelled
  )
  draw = np.random.default_rng(0)
  # The last cluster may be left empty.
  clusters = np.arange(60) % options.pop("num_full", num_clusters)
  embeddings = np.eye(num_clusters, 6)[clusters] + draw.normal(0, 0.2, (60, 6))
  write_clusters(
    workdir,
    options.pop("keys", keys),
    embeddings,
    clusters,
    num_clusters,
    labels=np.repeat([0, 1, 2], 20) if labelled else None,
    duplicates=[[3, 4], [10, 11, 12]],
    **options,
  )
  return workdir, folder
