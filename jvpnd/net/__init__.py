"""All that touches the host's network: TUN device, uplink watcher, addresses, routes, sysctls."""
