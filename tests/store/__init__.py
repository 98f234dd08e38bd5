"""Tests of agentq's store floor."""
