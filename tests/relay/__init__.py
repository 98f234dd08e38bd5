"""Tests of the relay and its chores."""
