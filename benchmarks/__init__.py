"""Benchmarks: agentq beside bare Celery and beside the raw statements, interleaved in one run."""
