"""Kinds and their handlers: registration, args to and from JSON, injection, the run's handle."""
