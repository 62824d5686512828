"""Configs of the consistency task."""
