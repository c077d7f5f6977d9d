"""Userspace tools and formats, one module each: typed, silent, no decisions."""
