"""Configs: checked (`check`), kept (`store`), sizes from the data (`auto`)."""

from typing import Any, TypeAlias

# A ConfigDict, or a section of one. To a type checker its values could be
# anything, so that it would object to every use of one.
Config: TypeAlias = Any
