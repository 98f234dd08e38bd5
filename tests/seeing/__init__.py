"""Sessions as people see them."""
