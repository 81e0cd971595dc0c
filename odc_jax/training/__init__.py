"""The only loop, the jitted step, and what surrounds them."""
