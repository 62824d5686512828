"""Configs of the diffusion task."""
