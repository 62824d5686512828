"""Configs of the language task."""
