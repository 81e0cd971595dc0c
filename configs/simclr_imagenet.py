"""SimCLR with ResNet-50 on ImageNet, with the published hyper-parameters.

  python run.py --config=configs/simclr_imagenet.py

A yardstick: a contrastive method without clusters. Paper: Chen, Kornblith,
Norouzi, Hinton, A simple framework for contrastive learning of visual
representations, ICML 2020. Values: the README and the defaults of
google-research/simclr, which says 64.5 % linear top-1 for these 100 epochs at
batch 4,096; 69.1 % is its first version after 1,000. The learning rate is
0.075 times the root of the batch size. docs/methods.md says what differs. This
implementation has not been run at that size yet.

ImageNet has to be prepared once, from its two archives, which are to be had
from image-net.org:

  python -m odc_jax.data.prepare imagenet2012 --manual_dir=/path/to/tars
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
  config = ConfigDict()
  config.method = "simclr"
  config.seed = 0
  # Of k-means on the embeddings of the end.
  config.num_clusters = 1000
  config.num_epochs = 100
  config.batch_size = 4096

  config.data = ConfigDict(
    {
      "source": "tfds:imagenet2012",
      "split": "train",
      "sampling": "permutation",
      "image_size": 224,
      "views": 2,
      "crop_scale": (0.08, 1.0),
      "crop_ratio": (3 / 4, 4 / 3),
      "eval_resize": 256,
      **common.reading(num_threads=16),
      "crop_interpolation": "bicubic",
    }
  )
  config.augment = ConfigDict(
    {
      "flip": 0.5,
      "rotation": 0.0,
      "rotation_interpolation": "nearest",
      "translate": 0,
      "jitter_p": 0.8,
      "brightness": 0.8,
      "contrast": 0.8,
      "saturation": 0.8,
      "hue": 0.2,
      "gray": 0.2,
      "blur": 0.5,
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
      "neck": "mlp3",
      "neck_hidden": 2048,
      "embedding_dim": 128,
      # A file to start from, as docs/weights.md has them; "": at random.
      "weights": "",
    }
  )
  config.simclr = ConfigDict(
    {
      "temperature": 0.1,
    }
  )
  config.optimizer = ConfigDict(
    {
      "name": "lars",
      "trust": 0.001,
      "clip": False,
      "learning_rate": 4.8,
      "momentum": 0.9,
      "weight_decay": 0.0001,
      "schedule": "cosine",
      "warmup_epochs": 10.0,
      "warmup_from": 0.0,
      "num_epochs": config.get_ref("num_epochs"),
    }
  )
  config.eval = common.evaluation(split="validation", every_epochs=20)
  config.update(common.logging())
  if common.is_quick(variant):
    common.shrink_imagenet(config)
    config.optimizer.learning_rate = 0.15
    config.optimizer.warmup_epochs = 0.0
  return config
