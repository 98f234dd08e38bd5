"""Every command of every runbook, run against an incident of its kind."""
