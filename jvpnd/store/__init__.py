"""The session table: who owns which session, in which version."""
