"""Known bad combinations, as data: *.toml here, and errata.d beside the policy. `load` reads and checks them."""
