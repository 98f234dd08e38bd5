"""
One module for each runbook, with the name of its file.

`stage(scene)` makes the incident, and returns what the runbook's words in capitals stand for.
"""
