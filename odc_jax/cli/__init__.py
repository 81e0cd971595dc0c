"""The command: its flags, its help, its configs, what it does with them."""
