"""Prints a plan: bytes, phases, collectives."""

import math
from collections import Counter
from collections.abc import Sequence

import jax

GIB = 2**30


# Collectives that are named one by one.
_NUM_NAMED = 12


def _num_bytes(leaf, sharding):
  return math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def _tree_bytes(shapes, shardings):
  return sum(
    map(_num_bytes, jax.tree.leaves(shapes), jax.tree.leaves(shardings))
  )


def _print_counts(title, parts):
  print(f"\n{title}")
  for name, count in parts.items():
    print(f"  {name:24} {count:>14,}")
  print(f"  {'sum':24} {sum(parts.values()):>14,}")


def _print_bytes(title, parts):
  print(f"\n{title}")
  for name, size in parts.items():
    print(f"  {name:24} {_readable(size):>10}")
  print(f"  {'sum':24} {_readable(sum(parts.values())):>10}")


def _print_phases(phases, usages, too_large, limit, limit_source):
  """Prints a line for each phase; returns whether all of them fit."""
  print("\nBytes per device, by phase")
  for name, parts in phases.items():
    line = " + ".join(
      f"{part} {_readable(size)}" for part, size in parts.items()
    )
    print(f"  {name:18} {_readable(sum(parts.values())):>10} = {line}")
  print("\nOf these, by program")
  for name, usage in usages.items():
    print(
      f"  {name:18} temporaries {_readable(usage.temporaries)}, code "
      f"{_readable(usage.code)}, new results "
      f"{_readable(usage.results - usage.in_place)}, in place "
      f"{_readable(usage.in_place)}"
    )
  for name, reason in too_large.items():
    print(f"  {name:18} does not fit: {reason}")
  most = max(sum(parts.values()) for parts in phases.values())
  if too_large:
    print("\nDOES NOT FIT: the compiler refuses what is named above")
    return False
  if limit is None:
    print(f"\nneeds {_readable(most)} a device; its limit is not known")
    return None
  fits = most <= limit
  print(
    f"\n{'fits' if fits else 'DOES NOT FIT'}: {_readable(most)} of "
    f"{_readable(limit)} a device ({limit_source})"
  )
  return fits


def _grouped(
  collectives: Sequence[tuple[str, str, int]],
) -> list[tuple[str, str, int, int]]:
  """Returns (op, shape, bytes of one, count), the largest first."""
  counts = Counter(collectives)
  groups = [(*kind, count) for kind, count in counts.items()]
  return sorted(groups, key=lambda group: -group[2] * group[3])


def _print_collectives(name, collectives):
  groups = _grouped(collectives)
  print(
    f"\nBetween devices, {name}: {len(collectives)} collectives, "
    f"{_readable(sum(size for _, _, size in collectives))}, each at most once "
    "a step or iteration"
  )
  for op, shape, size, count in groups[:_NUM_NAMED]:
    if shape.count("[") > 3:
      shape = f"{shape.count('[')} arrays"
    print(f"  {count:4} x {_readable(size):>10}  {op} {shape}")
  rest = groups[_NUM_NAMED:]
  if rest:
    number = sum(count for *_, count in rest)
    size = sum(size * count for _, _, size, count in rest)
    print(f"  {number:4} smaller, together {_readable(size)}")


def _readable(size: int | float) -> str:
  """Returns 1.5 GiB for 1610612736."""
  for unit in ("B", "KiB", "MiB"):
    if size < 1024:
      return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
    size /= 1024
  return f"{size:,.2f} GiB"
