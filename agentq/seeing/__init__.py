"""Seeing: one session as people look at it, in a terminal, on a page, in Flower."""
