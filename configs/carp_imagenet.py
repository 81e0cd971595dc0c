"""CARP with ResNet-50 on ImageNet, with the published hyper-parameters.

  python run.py --config=configs/carp_imagenet.py

Paper: Silva, Ramirez Rivera, Representation learning via consistent assignment
of views over random partitions, NeurIPS 2023. Values: the defaults of
sthalles/carp, whose README has 75.3 % linear top-1 and 67.7 % kNN for 400
epochs with two large and six small views, and 72.5 % and 63.5 % for these 100.
The learning rate is 0.45 times the batch size over 256; how many GPUs had 32
images each is not published, and the batch here is SwAV's. This implementation
has not been run at that size yet.

ImageNet has to be prepared once, from its two archives, which are to be had
from image-net.org:

  python -m odc_jax.data.prepare imagenet2012 --manual_dir=/path/to/tars
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
  config = ConfigDict()
  config.method = "carp"
  config.seed = 0
  config.num_clusters = 65536
  config.num_epochs = 100
  config.batch_size = 4096

  config.data = ConfigDict(
    {
      "source": "tfds:imagenet2012",
      "split": "train",
      "sampling": "permutation",
      "image_size": 224,
      "views": 2,
      "crop_scale": (0.2, 1.0),
      "small_views": 6,
      "small_size": 96,
      "small_crop_scale": (0.05, 0.2),
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
      "neck": "mlp3_gelu",
      "neck_hidden": 2048,
      "embedding_dim": 256,
      # A file to start from, as docs/weights.md has them; "": at random.
      "weights": "",
    }
  )
  config.carp = ConfigDict(
    {
      # Prototypes in a block; 0: all of them in one.
      "block_size": 512,
      # Without a slower copy a view is assigned like the other one itself.
      "teacher": True,
      "teacher_decay": (0.99, 1.0),
    }
  )
  config.optimizer = ConfigDict(
    {
      "name": "lars",
      "learning_rate": 0.45 * 4096 / 256,
      "momentum": 0.9,
      "weight_decay": 1e-06,
      "schedule": "cosine",
      "final_learning_rate": 0.0048,
      "warmup_epochs": 0.0,
      "warmup_from": 0.0,
      "num_epochs": config.get_ref("num_epochs"),
    }
  )
  config.eval = common.evaluation(split="validation", every_epochs=20)
  config.eval.network = "teacher"
  config.update(common.logging())
  if common.is_quick(variant):
    common.shrink_imagenet(config)
    config.data.small_size = 32
    config.carp.block_size = 25
    config.optimizer.learning_rate = 0.45 * 128 / 256
  return config
