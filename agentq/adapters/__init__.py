"""Adapters: agents of other frameworks, carried step by step; each needs its framework's extra."""
