"""`jvpnctl doctor`: what on this host keeps the tunnel from working, and what to do about it.

Facts are gathered (gather.py, etcd.py) and then judged by pure functions. Nothing is changed, and
nothing is sent but what the host's resolver asks for the names of endpoints, and what a node of a
cluster asks of etcd.
"""
