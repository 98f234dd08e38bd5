"""Policies: decisions returned as values. The engine acts on them."""
