"""Atoms of an upgrade: observe, do, undo, verify. One file a concern."""
