"""kupgrade: replaces the running Linux kernel while unmodified workloads go on."""

__version__ = "0.1.0"
