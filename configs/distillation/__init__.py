"""Configs of the distillation task."""
