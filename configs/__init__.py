"""Configs: Python files with `get_config()`, one folder a task. Any field can be overridden from the command line."""
