"""The relay and its chores: what is sent, taken back, told, announced and redriven beside the steps."""
