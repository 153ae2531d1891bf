"""Watching: the event log, and what is made of it."""
