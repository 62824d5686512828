"""What a run would need on devices that need not be here: the update compiled ahead of time, and arithmetic on it."""
