"""The command line tool jvpnctl."""
