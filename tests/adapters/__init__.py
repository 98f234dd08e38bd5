"""Adapters of other frameworks."""
