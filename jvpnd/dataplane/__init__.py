"""The data plane: unprivileged worker processes between the TUN device and the transports."""
