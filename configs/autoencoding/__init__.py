"""Configs of the autoencoding task."""
