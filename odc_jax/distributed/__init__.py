"""Several processes and devices: started, joined, stopped together."""
