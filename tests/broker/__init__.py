"""Tests of agentq's broker floor."""
