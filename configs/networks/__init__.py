"""Policies and critics of the example specs, as classes in Python."""
