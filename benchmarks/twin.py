"""PyTorch's twin of a network: layers, loss and optimiser the same.

Needs the extra `torch`.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from odc_jax.config import Config

# (blocks, expansion) of the twin: He et al., table 1.
RESNETS = {
  "resnet18": ((2, 2, 2, 2), 1),
  "resnet34": ((3, 4, 6, 3), 1),
  "resnet50": ((3, 4, 6, 3), 4),
}


def torch_network(section: Config, num_clusters: int) -> tuple[Any, Any]:
  """Returns PyTorch's twin of a network: what makes embeddings, and the head.

  Args:
    section: The section `model` of an experiment.
    num_clusters: What the head tells apart.
  """
  import torch
  from torch import nn

  depths, expansion = RESNETS[section.name]

  def conv(inputs, outputs, size, stride=1):
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)

  class Block(nn.Module):
    """A basic block, or with expansion 4 a bottleneck."""

    def __init__(self, inputs, width, stride):
      super().__init__()
      outputs = width * expansion
      shapes = [(inputs, width, 3, stride), (width, outputs, 3, 1)]
      if expansion > 1:
        shapes = [
          (inputs, width, 1, 1),
          (width, width, 3, stride),
          (width, outputs, 1, 1),
        ]
      layers: list[nn.Module] = []
      for shape in shapes:
        layers += [conv(*shape), nn.BatchNorm2d(shape[1]), nn.ReLU(True)]
      self.residual = nn.Sequential(*layers[:-1])
      self.shortcut = nn.Sequential()
      if stride != 1 or inputs != outputs:
        self.shortcut = nn.Sequential(
          conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
        )

    def forward(self, x):
      return torch.relu(self.residual(x) + self.shortcut(x))

  width = section.width
  layers: list[nn.Module] = [
    conv(3, width, 7, 2) if section.stem == "imagenet" else conv(3, width, 3),
    nn.BatchNorm2d(width),
    nn.ReLU(True),
  ]
  if section.stem == "imagenet":
    layers.append(nn.MaxPool2d(3, 2, 1))
  features = width
  for i, depth in enumerate(depths):
    for j in range(depth):
      stride = 2 if i > 0 and j == 0 else 1
      layers.append(Block(features, width * 2**i, stride))
      features = width * 2**i * expansion
  body = nn.Sequential(
    *layers,
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(features, section.neck_hidden),
    nn.BatchNorm1d(section.neck_hidden, affine=False),
    nn.ReLU(True),
    nn.Dropout(section.dropout),
    nn.Linear(section.neck_hidden, section.embedding_dim),
    nn.ReLU(True),
  )
  return body, nn.Linear(section.embedding_dim, num_clusters)


def twins(config: Config) -> Iterator[tuple[str, Callable[[int], None]]]:
  """Yields PyTorch's twins of "the network alone": eager, and compiled.

  Args:
    config: A resolved experiment of ODC.

  Yields:
    A name, and what takes n steps and waits for them. The second one has to be
    compiled first, which may fail: then a line says so, and there is none.
  """
  import torch
  from torch import nn

  device = "cuda" if torch.cuda.is_available() else "cpu"
  section, settings = config.model, config.optimizer
  body, head = torch_network(section, config.num_clusters)
  net: Any = nn.Sequential(body, head).to(device)
  net = net.to(memory_format=torch.channels_last)
  optimizer = torch.optim.SGD(
    [
      {"params": body.parameters(), "momentum": settings.momentum},
      {"params": head.parameters(), "momentum": settings.head_momentum},
    ],
    lr=settings.learning_rate,
    weight_decay=settings.weight_decay,
  )
  size = config.data.image_size
  batches = [
    (
      torch.randn(config.batch_size, 3, size, size, device=device).to(
        memory_format=torch.channels_last
      ),
      torch.randint(config.num_clusters, (config.batch_size,), device=device),
    )
    for _ in range(4)
  ]
  half = section.dtype == "bfloat16"
  # What a GPU's PyTorch does in float32 by default is TF32, as is XLA's; and
  # XLA tries convolutions out too.
  torch.backends.cuda.matmul.allow_tf32 = True
  torch.backends.cudnn.benchmark = True

  def run(forward, num):
    for i in range(num):
      images, targets = batches[i % len(batches)]
      optimizer.zero_grad(set_to_none=True)
      with (
        torch.autocast(device, torch.bfloat16)
        if half
        else (contextlib.nullcontext())
      ):
        logits = forward(images)
        loss = nn.functional.cross_entropy(logits, targets)
      loss.backward()
      optimizer.step()
    loss.item()  # waits for the device

  run(net, 2)
  yield "PyTorch, eager", lambda num: run(net, num)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      compiled = torch.compile(net)
      run(compiled, 2)
  except Exception as error:
    # It needs a compiler, and gives up in many ways.
    line = str(error).strip().splitlines()[0]
    print(f"torch.compile does not work here: {line}")
    return
  yield "PyTorch, compiled", lambda num: run(compiled, num)
