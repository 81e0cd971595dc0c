"""BYOL with ResNet-50 on ImageNet, with the published hyper-parameters.

  python run.py --config=configs/byol_imagenet.py
  python run.py --config=configs/byol_imagenet.py:epochs300

A yardstick: a method without clusters. Paper: Grill et al., Bootstrap your own
latent, NeurIPS 2020. Values: deepmind-research byol/configs/byol.py for its
1,000 epochs, or 300, at batch 4,096; the learning rate is the base one times
the batch size over 256. The paper has 74.3 % linear top-1 after 1,000 epochs.
docs/methods.md says what differs. This implementation has not been run at that
size yet.

ImageNet has to be prepared once, from its two archives, which are to be had
from image-net.org:

  python -m odc_jax.data.prepare imagenet2012 --manual_dir=/path/to/tars
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
  config = ConfigDict()
  config.method = "byol"
  config.seed = 0
  # Of k-means on the embeddings of the end.
  config.num_clusters = 1000
  config.num_epochs = 1000
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
      "brightness": 0.4,
      "contrast": 0.4,
      "saturation": 0.2,
      "hue": 0.1,
      "gray": 0.2,
      "blur": (1.0, 0.1),
      "blur_sigma": (0.1, 2.0),
      "solarize": (0.0, 0.2),
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
      "neck": "mlp2_no_bias",
      "neck_hidden": 4096,
      "embedding_dim": 256,
      "predictor": True,
      # A file to start from, as docs/weights.md has them; "": at random.
      "weights": "",
    }
  )
  config.byol = ConfigDict(
    {
      "teacher_decay": 0.996,
    }
  )
  config.optimizer = ConfigDict(
    {
      "name": "lars",
      "trust": 0.001,
      "clip": False,
      "learning_rate": 3.2,
      "momentum": 0.9,
      "weight_decay": 1.5e-06,
      "schedule": "cosine",
      "warmup_epochs": 10.0,
      "warmup_from": 0.0,
      "num_epochs": config.get_ref("num_epochs"),
    }
  )
  config.eval = common.evaluation(split="validation", every_epochs=20)
  config.eval.network = "student"
  config.update(common.logging())
  if variant == "epochs300":
    config.num_epochs = 300
    config.byol.teacher_decay = 0.99
    config.optimizer.learning_rate = 4.8
    config.optimizer.weight_decay = 1e-6
  elif common.is_quick(variant, "epochs300"):
    common.shrink_imagenet(config)
    config.optimizer.learning_rate = 0.1
    config.optimizer.warmup_epochs = 0.0
  return config
