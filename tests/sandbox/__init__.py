"""The sandbox, attacked."""
