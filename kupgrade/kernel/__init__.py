"""One kernel interface per module: typed, silent, root-relative; facts are raised as KernelError."""
