"""One paper per file; the papers differ only here."""

from odc_jax.methods import odc

METHODS = {"odc": odc}
