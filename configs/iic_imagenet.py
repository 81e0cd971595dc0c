"""IIC with ResNet-34 on ImageNet.

  python run.py --config=configs/iic_imagenet.py

The official code has no ImageNet; this is its recipe for STL-10, model 569 of
examples/commands.txt: 700 pairs of 140 images, crops of 64 pixels, grey with a
Sobel filter, turns of one epoch. The numbers of clusters keep that recipe's
ratio of seven to one, and batches are larger: the entropy of 1,000 clusters
cannot be seen in 700 pairs. ImageNet is prepared as for
configs/odc_imagenet.py. This has not been run yet.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
  config = ConfigDict()
  config.method = "iic"
  config.seed = 0
  config.num_clusters = 1000
  config.num_epochs = 200
  config.batch_size = 2048

  config.data = ConfigDict(
    {
      "source": "tfds:imagenet2012",
      "split": "train",
      "sampling": "permutation",
      "image_size": 64,
      # The image, and 5 changed copies of it.
      "views": 1,
      "crop_scale": (0.44, 0.44),
      "small_views": 5,
      "small_size": 64,
      "small_crop_scale": (0.44, 0.44),
      "crop_ratio": (1.0, 1.0),
      "eval_resize": 73,
      **common.reading(num_threads=16),
    }
  )
  config.augment = ConfigDict(
    {
      # Of the image, then of all copies.
      "flip": (0.0, 0.5),
      "rotation": 0.0,
      "rotation_interpolation": "nearest",
      "translate": 0,
      "jitter_p": (0.0, 1.0),
      "brightness": 0.4,
      "contrast": 0.4,
      "saturation": 0.4,
      "hue": 0.125,
      "gray": 0.0,
      "blur": 0.0,
      "blur_sigma": (0.1, 2.0),
      "solarize": 0.0,
      "lighting": 0.0,
      "mean": (0.0, 0.0, 0.0),
      "std": (1.0, 1.0, 1.0),
      "sobel": True,
    }
  )
  config.model = ConfigDict(
    {
      "name": "resnet34",
      "stem": "small",
      "width": 64,
      "dtype": "bfloat16",
      # The heads are on the pooled features.
      "neck": "none",
      # A file to start from, as docs/weights.md has them; "": at random.
      "weights": "",
    }
  )
  config.iic = ConfigDict(
    {
      "num_heads": 5,
      "over_clusters": 7000,
      # What the heads of each epoch are; again from the first.
      "turns": ("over", "main"),
      "marginal_weight": 1.0,
    }
  )
  config.optimizer = ConfigDict(
    {
      # Without weight decay this is Adam.
      "name": "adamw",
      "learning_rate": 1e-4,
      "momentum": 0.9,
      "weight_decay": 0.0,
      "schedule": "step",
      "warmup_epochs": 0.0,
      "decay_epochs": (),
      "decay_rate": 0.1,
      "final_learning_rate": 0.0,
      "num_epochs": config.get_ref("num_epochs"),
    }
  )
  config.eval = common.evaluation(split="validation", every_epochs=10)
  config.eval.evaluators = ("knn", "clustering", "assignment")
  config.update(common.logging())
  if common.is_quick(variant):
    common.shrink_imagenet(config)
    config.data.small_size = 64
    config.iic.over_clusters = 700
  return config
