"""Distillation: objectives by name, and the task that trains a student with one."""
