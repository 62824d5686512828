"""Configs of the classification task."""
