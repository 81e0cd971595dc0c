"""DeepCluster on the 1,797 handwritten digits inside scikit-learn.

  python run.py --config=configs/deepcluster_digits.py

A ResNet-18, a quarter as wide as usual, learns without labels from 8x8 images
enlarged to 32x32. Every epoch begins with k-means on its pooled features and a
new classifier. From ODC's config: data, augmentations, learning rate. On two
CPU cores about 2 minutes (4 min 13 s of CPU time, one run, seed 0):

  epoch       0      10     20     30     40     50     60     70
  kNN       0.911  0.957  0.963  0.968  0.957  0.983  0.986  0.982
  purity    0.831  0.878  0.909  0.922  0.881  0.877  0.918  0.926
"""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
  config = ConfigDict()
  config.method = "deepcluster"
  config.seed = 0
  config.num_clusters = 30
  config.num_epochs = 70
  config.batch_size = 64

  config.data = ConfigDict(
    {
      "source": "digits",
      "split": "",
      "sampling": "permutation",
      "image_size": 32,
      "crop_scale": (0.6, 1.0),
      "crop_ratio": (0.8, 1.25),
      "eval_resize": 32,
      **common.reading(num_threads=2, prefetch=8),
    }
  )
  config.augment = ConfigDict(
    {
      "flip": 0.0,
      "rotation": 20.0,
      "rotation_interpolation": "bilinear",
      "translate": 2,
      "jitter_p": 1.0,
      "brightness": 0.4,
      "contrast": 0.4,
      "saturation": 0.0,
      "hue": 0.0,
      "gray": 0.0,
      "blur": 0.0,
      "blur_sigma": (0.1, 2.0),
      "solarize": 0.0,
      "lighting": 0.0,
      "mean": (0.305, 0.305, 0.305),
      "std": (0.376, 0.376, 0.376),
      "sobel": False,
    }
  )
  config.model = ConfigDict(
    {
      "name": "resnet18",
      "stem": "imagenet",
      "width": 16,
      "dtype": "float32",
      "init": "fan_in",
      # The pooled features are the embeddings.
      "neck": "none",
      "group_size": 0,
      # A file to start from, as docs/weights.md has them; "": at random.
      "weights": "",
    }
  )
  config.deepcluster = ConfigDict(
    {
      "pca_dim": 64,
      "kmeans_iters": 20,
      "kmeans_init": "k-means++",
      "recluster_every": 1,
      "sampler": "facebook",
      "reweight_power": 0.0,
    }
  )
  config.optimizer = ConfigDict(
    {
      "learning_rate": 0.2,
      "momentum": 0.9,
      "head_momentum": 0.0,
      "weight_decay": 5e-4,
      "schedule": "step",
      "warmup_epochs": 0.0,
      "decay_epochs": (55,),
      "decay_rate": 0.4,
      "num_epochs": config.get_ref("num_epochs"),
    }
  )
  config.eval = common.evaluation_of_digits()
  config.update(common.logging(log_every=20, checkpoint_every_epochs=10))
  if common.is_quick(variant):
    common.shorten(config, num_epochs=5)
  return config
