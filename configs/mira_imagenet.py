"""MIRA with ResNet-50 on ImageNet, with the published hyper-parameters.

  python run.py --config=configs/mira_imagenet.py

Paper: Lee, Lee, Lee, Unsupervised visual representation learning via mutual
information regularized assignment, NeurIPS 2022. Values: the defaults of
movinghoon/MIRA, whose README has 75.6 % linear top-1 for these 400 epochs with
two large and six small views at batch 4,096, and 74.1 % for 800 with two alone.
The learning rate is 0.3 times the batch size over 256. This implementation has
not been run at that size yet.

ImageNet has to be prepared once, from its two archives, which are to be had
from image-net.org:

  python -m odc_jax.data.prepare imagenet2012 --manual_dir=/path/to/tars
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
  config = ConfigDict()
  config.method = "mira"
  config.seed = 0
  config.num_clusters = 3000
  config.num_epochs = 400
  config.batch_size = 4096

  config.data = ConfigDict(
    {
      "source": "tfds:imagenet2012",
      "split": "train",
      "sampling": "permutation",
      "image_size": 224,
      "views": 2,
      "crop_scale": (0.14, 1.0),
      "small_views": 6,
      "small_size": 96,
      "small_crop_scale": (0.05, 0.14),
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
      "brightness": 0.4,
      "contrast": 0.4,
      "saturation": 0.2,
      "hue": 0.1,
      "gray": 0.2,
      "blur": (1.0, 0.1, 0.5),
      "blur_sigma": (0.1, 2.0),
      "solarize": (0.0, 0.2, 0.0),
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
      "init": "fan_out",
      "neck": "mlp3_bias_last",
      "neck_hidden": 2048,
      "embedding_dim": 256,
      # A file to start from, as docs/weights.md has them; "": at random.
      "weights": "",
    }
  )
  config.mira = ConfigDict(
    {
      "temperature": 0.1,
      "teacher_temperature": 0.225,
      "beta": (3 / 4, 2 / 3),
      "num_iters": 30,
      "teacher_decay": (0.99, 1.0),
    }
  )
  config.optimizer = ConfigDict(
    {
      "name": "lars",
      "learning_rate": 4.8,
      "momentum": 0.9,
      "weight_decay": 1e-06,
      "schedule": "cosine",
      "warmup_epochs": 10.0,
      "warmup_from": 0.3,
      "decay_all": False,
      "head_freeze_epochs": 1,
      "num_epochs": config.get_ref("num_epochs"),
    }
  )
  config.eval = common.evaluation(split="validation", every_epochs=20)
  config.eval.network = "teacher"
  # The published probe: MIRA eval_linear.py, its defaults.
  config.eval.update(
    {
      "linear_sgd": common.linear(
        num_epochs=100,
        batch_size=1024,
        learning_rate=0.075 * 1024 / 256,
        schedule="cosine",
        weight_decay=0.0,
      )
    }
  )
  config.update(common.logging())
  if common.is_quick(variant):
    common.shrink_imagenet(config)
    config.data.small_size = 32
    config.optimizer.learning_rate = 0.3
    config.optimizer.warmup_epochs = 0.0
  return config
