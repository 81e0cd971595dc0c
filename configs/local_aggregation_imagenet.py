"""Local Aggregation with ResNet-50 on ImageNet, as published.

  python run.py --config=configs/local_aggregation_imagenet.py

Paper: Zhuang, Zhai, Yamins, Local Aggregation for Unsupervised Learning of
Visual Embeddings, ICCV 2019. Values: neuroailab/LocalAggregation
param_setter.py, config/imagenet_la.json, exp_configs/la_final.json; crops and
colours: agents.py of its port to PyTorch, LocalAggregation-Pytorch. Where they
are not said there, the initial weights are torchvision's.

The repositories print no results. This implementation has not been run at that
size yet.

ImageNet has to be prepared once, as configs/odc_imagenet.py tells.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
  config = ConfigDict()
  config.method = "local_aggregation"
  config.seed = 0
  config.num_clusters = 30_000
  config.num_epochs = 200
  config.batch_size = 128

  config.data = ConfigDict(
    {
      "source": "tfds:imagenet2012",
      "split": "train",
      "sampling": "permutation",
      "image_size": 224,
      "crop_scale": (0.2, 1.0),
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
      "jitter_p": 1.0,
      "brightness": 0.4,
      "contrast": 0.4,
      "saturation": 0.4,
      "hue": 0.4,
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
      # As published; "bfloat16" is faster.
      "dtype": "float32",
      "init": "fan_out",
      "neck": "linear",
      "embedding_dim": 128,
      # A file to start from, as docs/weights.md has them; "": at random.
      "weights": "",
    }
  )
  config.local_aggregation = ConfigDict(
    {
      # t, and how much of its old row the memory keeps.
      "temperature": 0.07,
      "momentum": 0.5,
      # k; of the first epochs the images drawn as noise.
      "num_background": 4096,
      "num_clusterings": 10,
      "kmeans_iters": 20,
      # Of instance recognition, before the first clustering.
      "warm_epochs": 10.0,
    }
  )
  config.optimizer = ConfigDict(
    {
      "name": "sgd",
      "learning_rate": 0.03,
      "momentum": 0.9,
      "weight_decay": 0.0001,
      # Neither BatchNorm's nor biases.
      "decay_all": False,
      "schedule": "step",
      "warmup_epochs": 0.0,
      "warmup_from": 0.0,
      # After 1.522 and 1.896 million of 2.0 million steps.
      "decay_epochs": (152, 189.4),
      "decay_rate": 0.1,
      "final_learning_rate": 0.0,
      "num_epochs": config.get_ref("num_epochs"),
    }
  )
  config.eval = common.evaluation(split="validation", every_epochs=20)
  config.update(common.logging())
  if common.is_quick(variant):
    common.shrink_imagenet(config)
    config.local_aggregation.warm_epochs = 1.0
    config.optimizer.decay_epochs = ()
  return config
