"""Reads what a compiled program sends between devices."""

import math
import re

_OPS = (
  "all-gather",
  "all-reduce",
  "all-to-all",
  "collective-broadcast",
  "collective-permute",
  "ragged-all-to-all",
  "reduce-scatter",
)
_COLLECTIVE = re.compile(rf" = (.*?) ({'|'.join(_OPS)})(-start)?\(")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,<= ]*)\]")


def collectives(compiled_text: str) -> list[tuple[str, str, int]]:
  """Lists the collectives of `jit(f).lower(...).compile().as_text()`.

  One in a branch or a loop is listed once. So is an asynchronous one on a TPU:
  there each fusion that it overlaps with repeats it, on the same channel.

  Returns:
    One (op, shape, bytes) for each, in the order of the text: the op without
    "-start", the result's shape without layouts, "(f32[8,2], s32[8])" for a
    tuple, and the bytes of the result.
  """
  found, channels = [], set()
  for line in compiled_text.splitlines():
    match = _COLLECTIVE.search(line.split(", metadata=")[0])
    if not match:
      continue
    shape, op, start = match.groups()
    channel = _CHANNEL.search(line)
    if channel and '"async_collective' in line:
      if channel[1] in channels:
        continue
      channels.add(channel[1])
    # The comments in long tuples, "/*index=5*/", and the layouts.
    shape = re.sub(r"/\*.*?\*/|\{[^{}]*\}", "", shape)
    if start and op != "all-reduce" and shape.startswith("("):
      # The start of an asynchronous one returns (operands, results, ...).
      shape = _elements(shape)[1]
    found.append((op, shape, _num_bytes(shape)))
  return found


def _elements(shape):
  """Splits a tuple's shape at its outermost commas."""
  elements, depth = [""], 0
  for character in shape[1:-1]:
    depth += (character in "([") - (character in ")]")
    if character == "," and depth == 0:
      elements.append("")
    else:
      elements[-1] += character
  return [element.strip() for element in elements]


def _num_bytes(shape):
  total = 0
  for dtype, sizes in _ARRAY.findall(shape):
    if dtype == "token":
      continue
    digits = re.search(r"\d+", dtype)
    bits = int(digits[0]) if digits else 8  # pred is a byte
    sizes = [int(size.strip(" <=")) for size in sizes.split(",") if size]
    total += math.ceil(math.prod(sizes) * bits / 8)
  return total
