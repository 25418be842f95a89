"""Repairing and filtering documents."""
