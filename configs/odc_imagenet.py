"""ODC with ResNet-50 on ImageNet, with the published hyper-parameters.

  python run.py --config=configs/odc_imagenet.py

Paper: Zhan, Xie, Liu, Ong, Loy, Online Deep Clustering for Unsupervised
Representation Learning, CVPR 2020. Values: OpenSelfSup
configs/selfsup/odc/r50_v1.py.

The official run takes 440 epochs at batch 512 on 8 GPUs; its model zoo gives
53.42 % linear top-1 on the pooled features and 57.70 % on the best stage. This
implementation has not been run at that size yet.

:frozen leaves a pretrained ViT-L/14 of DINOv2's as it is and trains heads and
memories on its features. The images pass it once; it has not been run either.

ImageNet has to be prepared once, from its two archives, which are to be had
from image-net.org:

  python -m odc_jax.data.prepare imagenet2012 --manual_dir=/path/to/tars
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
  config = ConfigDict()
  config.method = "odc"
  config.seed = 0
  config.num_clusters = 10_000
  config.num_epochs = 440
  config.batch_size = 512

  config.data = ConfigDict(
    {
      "source": "tfds:imagenet2012",
      "split": "train",
      # Officially every image is drawn on its own: an epoch shows about 63 %
      # of the data set.
      "sampling": "replacement",
      "image_size": 224,
      "crop_scale": (0.08, 1.0),
      "crop_ratio": (3 / 4, 4 / 3),
      "eval_resize": 256,
      **common.reading(num_threads=16),
    }
  )
  config.augment = ConfigDict(
    {
      "flip": 0.5,
      "rotation": 2.0,
      "rotation_interpolation": "nearest",
      "translate": 0,
      "jitter_p": 1.0,
      "brightness": 0.4,
      "contrast": 0.4,
      "saturation": 1.0,
      "hue": 0.5,
      "gray": 0.2,
      "blur": 0.0,
      "blur_sigma": (0.1, 2.0),
      "solarize": 0.0,
      "lighting": 0.0,
      "mean": (0.485, 0.456, 0.406),
      "std": (0.229, 0.224, 0.225),
      "sobel": False,
    }
  )
  config.model = ConfigDict(
    {
      "name": "resnet50",
      "stem": "imagenet",
      "width": 64,
      "dtype": "bfloat16",
      "init": "fan_in",
      "neck_hidden": 512,
      "embedding_dim": 256,
      "dropout": 0.5,
      "neck_bn_momentum": 0.001,
      # 8 GPUs with 64 images each: the neck's BatchNorm and the loss's
      # normaliser are theirs, the backbone's BatchNorm is synchronised.
      "group_size": 64,
      # A file to start from, as docs/weights.md has them; "": at random.
      "weights": "",
    }
  )
  config.odc = ConfigDict(
    {
      "momentum": 0.5,
      "assign_metric": "dot",
      "reweight_power": 0.5,
      "centroid_every": 10,
      "small_cluster_every": 1,
      "min_cluster": 20,
      "memory_dtype": "float32",
      "kmeans_iters": 20,
      "kmeans_init": "random",
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
      "decay_epochs": (400,),
      "decay_rate": 0.4,
      "num_epochs": config.get_ref("num_epochs"),
    }
  )
  config.eval = common.evaluation(split="validation", every_epochs=20)
  config.update(common.logging())
  if common.is_quick(variant, "frozen"):
    common.shrink_imagenet(config)
  elif variant == "frozen":
    _freeze(config)
  return config


def _freeze(config: Any) -> None:
  """Sets what belongs to a network that stays as it is, as for folders."""
  config.num_epochs = 50
  config.optimizer.decay_epochs = (45,)
  config.data.eval_resize, config.data.interpolation = 224, "bicubic"
  config.odc.momentum = 0.1
  config.odc.assign_metric, config.odc.kmeans_init = "cosine", "k-means++"
  with config.unlocked():
    config.model = ConfigDict(
      {
        "name": "vit",
        "stem": "imagenet",
        "width": 64,
        "dtype": "bfloat16",
        "init": "fan_in",
        # What the weights say of themselves; written out, so that a plan needs
        # no weights.
        "settings": {
          "dim": 1024,
          "depth": 24,
          "heads": 16,
          "hidden": 4096,
          "patch": 14,
          "grid": (37, 37),
          "positions": "patches",
          "registers": 4,
          "layer_scale": True,
        },
        "neck": "none",
        "embedding_dim": 1024,
        "group_size": 0,
        "weights": "hf:timm/vit_large_patch14_reg4_dinov2.lvd142m",
        "train": "head",
      }
    )
