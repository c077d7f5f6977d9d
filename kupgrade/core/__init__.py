"""Decisions, pure: (model) -> model."""
