"""Tests of agentq's agents floor."""
