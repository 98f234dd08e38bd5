"""The tests: they mirror agentq/, and run on real servers."""
