"""The throughput benchmark: Jumping VPN and its peers between two hosts on one cable."""
