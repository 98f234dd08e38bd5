"""Tests of agentq's engine floor."""
