"""Tests of agentq's client floor."""
