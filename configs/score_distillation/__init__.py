"""Configs of the score distillation task."""
