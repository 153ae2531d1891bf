"""Where events go besides the audit file: each one behind a sink of its own."""
