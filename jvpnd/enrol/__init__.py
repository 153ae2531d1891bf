"""Enrolment: the first configuration of a node, and a gateway's list of clients."""
