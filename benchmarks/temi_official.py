"""Trains the official TEMI code on features that `benchmarks.pretrained` left.

  git clone https://github.com/HHU-MMBS/TEMI-official-BMVC2023 DIR
  python -m benchmarks.temi_official --official=DIR \
    --features=runs/pretrained/features --epochs=10

The official `train_main.py` runs as it is, with its `--precomputed` features
and on the CPU: what it asks of CUDA is left undone, and the packages that only
images, networks or plots need (`UNUSED`) are empty. Heads, batch, rate and the
teacher's momentum are those of configs/temi_cifar10.py, so that both spend the
same; with --as_published they are the official command's: 512-256, 1,024, 1e-4
and 0.996. Accuracy, NMI and ARI of the test images are its own
`utils.compute_metrics`, of its head of the lowest loss. Needs the extra
`torch`. Prints one JSON line.
"""

import argparse
import json
import pathlib
import sys
import tempfile
import time
import warnings
from typing import Any
from unittest import mock

import numpy as np

ARCH, DATA = "features", "CIFAR10"
OURS = {
  "--hidden_dim": 128,
  "--bottleneck_dim": 64,
  "--batch_size": 256,
  "--lr": 5e-4,
  "--min_lr": 5e-4,
  "--warmup_epochs": 5,
  "--momentum_teacher": 0.98,
  "--max_momentum_teacher": 0.98,
  "--warmup_teacher_temp_epochs": 1,
  "--knn": 20,
}
# What it imports for images, their networks and its plots.
UNUSED = (
  *("clip", "timm", "timm.models", "timm.models.helpers", "torchvision"),
  *("torchvision.datasets", "torchvision.models", "torchvision.transforms"),
  "torchvision.transforms.functional",
  *("torch.utils.tensorboard", "matplotlib", "matplotlib.pyplot"),
  "linear_evaluation",
)
PUBLISHED = {
  "--batch_size": 1024,
  "--lr": 1e-4,
  "--min_lr": 1e-4,
  "--warmup_epochs": 20,
  "--max_momentum_teacher": 0.996,
  "--knn": 50,
}


def features_of(folder: pathlib.Path) -> list[tuple[np.ndarray, np.ndarray]]:
  """Returns features and labels of the training images and of the test's."""
  sets = [
    (np.load(path), np.load(path.with_name("labels.npy")))
    for path in folder.glob("*/features.npy")
  ]
  if len(sets) != 2:
    sys.exit(f"{folder} holds {len(sets)} sets of features, and not two")
  train, test = sorted(sets, key=lambda pair: -len(pair[0]))
  return [
    (features.reshape(len(features), -1).astype(np.float32), labels)
    for features, labels in (train, test)
  ]


def neighbors(features: np.ndarray, k: int, rows: int = 2000) -> np.ndarray:
  """Returns the k nearest others by cosine, as `compute_neighbors` has them."""
  unit = features / np.linalg.norm(features, axis=1, keepdims=True)
  found = []
  for begin in range(0, len(unit), rows):
    similar = unit[begin : begin + rows] @ unit.T
    own = np.arange(len(similar))
    similar[own, begin + own] = -np.inf
    nearest = np.argpartition(-similar, k, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(similar, nearest, 1), axis=1)
    found.append(np.take_along_axis(nearest, order, 1))
  return np.concatenate(found)


def train(official: pathlib.Path, work: pathlib.Path, flags: list[str]) -> Any:
  """Runs `train_main.main()`, and returns the teacher's checkpoint."""
  import torch

  sys.modules.update((name, mock.MagicMock()) for name in UNUSED)
  sys.path.insert(0, str(official))
  load = torch.load
  undone: Any = lambda self, *args, **kwargs: self  # noqa: E731
  with (
    mock.patch.object(torch.Tensor, "cuda", undone),
    mock.patch.object(torch.nn.Module, "cuda", undone),
    mock.patch.object(torch.cuda, "synchronize"),
    # Its own files, written by it and by this program.
    mock.patch.object(
      torch, "load", lambda *args, **kw: load(*args, weights_only=False, **kw)
    ),
    mock.patch.object(sys, "argv", ["train_main.py", *flags]),
  ):
    import train_main  # pyright: ignore[reportMissingImports]

    train_main.main()
    return torch.load(work / "out" / "checkpoint.pth")


def main() -> None:
  """Prints the scores of the official code on the same features."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--official", type=pathlib.Path, required=True)
  parser.add_argument("--features", type=pathlib.Path, required=True)
  parser.add_argument("--num_clusters", type=int, default=10)
  parser.add_argument("--epochs", type=int, default=40)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--as_published", action="store_true")
  args = parser.parse_args()
  import os

  import torch

  (images, labels), (test_images, test_labels) = features_of(args.features)
  settings = PUBLISHED if args.as_published else OURS
  work = pathlib.Path(tempfile.mkdtemp())
  folder = work / "data" / "embeddings" / f"{DATA}-{ARCH}"
  folder.mkdir(parents=True)
  for name, array in {
    "embeddings": images,
    "label": labels,
    "embeddings-test": test_images,
    "label-test": test_labels,
    "mean": images.mean(axis=0),
    "std": images.std(axis=0),
    "knn": neighbors(images, settings["--knn"]),
  }.items():
    torch.save(torch.from_numpy(np.asarray(array)), folder / f"{name}.pt")
  flags = [
    *("--disable_ddp", "--precomputed", "--embed_norm"),
    f"--arch={ARCH}",
    f"--dataset={DATA}",
    f"--embed_dim={images.shape[1]}",
    f"--out_dim={args.num_clusters}",
    f"--epochs={args.epochs}",
    f"--seed={args.seed}",
    f"--output_dir={work / 'out'}",
    *("--num_heads=16", "--num_workers=0", "--use_fp16=false"),
    *(f"{flag}={value}" for flag, value in settings.items()),
    *("--loss=TEMI", "--loss-args", "beta=0.6"),
  ]
  official = args.official.resolve()
  os.chdir(work)
  begin = time.monotonic()
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    checkpoint = train(official, work, flags)
  minutes = (time.monotonic() - begin) / 60
  import utils  # pyright: ignore[reportMissingImports]
  from model_builders import (  # pyright: ignore[reportMissingImports]
    MultiHeadClassifier,
  )

  config = vars(checkpoint["args"])
  names = ("out_dim", "num_heads", "nlayers", "hidden_dim", "bottleneck_dim")
  model = MultiHeadClassifier(
    ARCH,
    embed_dim=images.shape[1],
    **{name: config[name] for name in names},
  )
  model.load_state_dict(checkpoint["teacher"])
  model.eval()
  with torch.no_grad():
    found = model(torch.from_numpy(test_images)).argmax(dim=1).numpy()
  accuracy, nmi, _, ari = utils.compute_metrics(test_labels, found)
  scores = {"ACC": accuracy, "NMI": nmi, "ARI": ari, "minutes": minutes}
  print(
    json.dumps(
      {
        "benchmark": "temi_official",
        "settings": "published" if args.as_published else "ours",
        "epochs": args.epochs,
        "seed": args.seed,
        **{name: round(float(value), 4) for name, value in scores.items()},
      }
    )
  )


if __name__ == "__main__":
  main()
