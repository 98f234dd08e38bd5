"""What users write: agents, their steps, and what a step may return."""
