"""DeepCluster-v2 with ResNet-50 on ImageNet, as published.

  python run.py --config=configs/deepcluster_v2_imagenet.py
  python run.py --config=configs/deepcluster_v2_imagenet.py:crops160
  python run.py --config=configs/deepcluster_v2_imagenet.py:two_views

Paper: Caron, Misra, Mairal, Goyal, Bojanowski, Joulin, Unsupervised Learning of
Visual Features by Contrasting Cluster Assignments, NeurIPS 2020. Values:
facebookresearch/swav main_deepclusterv2.py and scripts/.

Officially these 800 epochs give 75.2 % linear top-1; 400 epochs of two crops of
160 and four of 96 pixels (:crops160) 74.3 %, measured on images of 224 pixels;
400 epochs of two crops of 224 pixels alone (:two_views) 70.2 %. This
implementation has not been run at that size yet. The probes of :crops160 look
at 224 pixels too; kNN and what else has no official number, at 160.

ImageNet has to be prepared once, as configs/odc_imagenet.py tells.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
  config = ConfigDict()
  config.method = "deepcluster_v2"
  config.seed = 0
  config.num_clusters = 3_000
  config.extra_clusters = (3_000, 3_000)
  config.num_epochs = 800
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
      # Not 0.229: so it is in the official code.
      "std": (0.228, 0.224, 0.225),
      "sobel": False,
    }
  )
  config.model = ConfigDict(
    {
      "name": "resnet50",
      "stem": "imagenet",
      "width": 64,
      # As published; "bfloat16" is faster.
      "dtype": "float32",
      "init": "fan_out",
      # Images that share BatchNorm statistics: those of 8 GPUs.
      "bn_group_size": 512,
      "neck": "mlp2",
      "neck_hidden": 2048,
      "embedding_dim": 128,
      # A file to start from, as docs/weights.md has them; "": at random.
      "weights": "",
    }
  )
  config.deepcluster_v2 = ConfigDict(
    {
      "temperature": 0.1,
      "kmeans_iters": 10,
      "memory_dtype": "float32",
    }
  )
  config.optimizer = ConfigDict(
    {
      "name": "lars",
      # Biases and BatchNorm too.
      "adapt_all": True,
      "trust": 0.001,
      "clip": False,
      "learning_rate": 4.8,
      "final_learning_rate": 0.0048,
      "momentum": 0.9,
      "weight_decay": 1e-6,
      "schedule": "cosine",
      "warmup_epochs": 10.0,
      "warmup_from": 0.3,
      "num_epochs": config.get_ref("num_epochs"),
    }
  )
  config.eval = common.evaluation(split="validation", every_epochs=20)
  config.eval.update(
    {
      # swav eval_linear.py, 32 images on each of 8 GPUs.
      "linear_sgd": common.linear(
        num_epochs=100,
        batch_size=256,
        learning_rate=0.3,
        schedule="cosine",
        weight_decay=1e-6,
      ),
      # swav eval_semisup.py; the README has the trunk's and the head's rates.
      "semi": {
        "epoch": "best",
        "percent1": {
          "learning_rates": (0.02,),
          "head_multipliers": (5 / 0.02,),
          "weight_decay": 0.0,
        },
        "percent10": {
          "learning_rates": (0.01,),
          "head_multipliers": (0.2 / 0.01,),
          "weight_decay": 0.0,
        },
      },
    }
  )
  config.update(common.logging())
  if variant in ("crops160", "two_views"):
    config.num_epochs = 400
    # Not 0.14, as with six small crops.
    config.data.crop_scale = (0.08, 1.0)
    config.data.small_views = 4 if variant == "crops160" else 0
    if variant == "crops160":
      config.data.image_size, config.data.eval_resize = 160, 182
      # eval_linear.py and eval_semisup.py, whatever the training had.
      sizes = {"image_size": 224, "eval_resize": 256}
      probes = ("linear_sgd", "linear_stages", "semi")
      config.eval.update(dict.fromkeys(probes, sizes))
  elif common.is_quick(variant, "crops160", "two_views"):
    common.shrink_imagenet(config)
    config.data.small_size = 32
    config.extra_clusters = (100, 100)
    config.optimizer.learning_rate = 0.6
    config.optimizer.warmup_epochs = 0.0
  return config
