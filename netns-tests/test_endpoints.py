"""Several endpoints of one gateway: each uplink can use each, and one that dies is left."""

from __future__ import annotations

from lab.daemons import INNER, PORT, Daemon, client_config, gateway_config, key_pair
from lab.topology import OUTSIDE, Lab
from lab.traffic import Traffic


def test_an_endpoint_that_goes_silent_is_left_for_another() -> None:
    (secret, public), (client_secret, client_public) = key_pair(), key_pair()
    second = f'transport = "udp"\naddress = "{OUTSIDE[6]}"\nport = {PORT}\n'
    listening = gateway_config({"laptop": client_public}, OUTSIDE[4]) + f"[[listen]]\n{second}"
    calling = client_config(public, OUTSIDE[4]) + f"[[gateway.endpoint]]\n{second}"
    with Lab() as lab:
        gateway = Daemon(lab.gateway, listening, secret)
        client = Daemon(lab.client, calling, client_secret)
        try:
            gateway.start()
            client.start()
            client.wait_state("ATTACHED")
            paths = {path["id"] for path in client.status()["paths"]}
            assert paths == {
                f"{uplink}/udp/{remote}"
                for uplink in ("up-a", "up-b")
                for remote in (f"{OUTSIDE[4]}:{PORT}", f"[{OUTSIDE[6]}]:{PORT}")
            }
            before = client.status()["session"]
            family = "ip6" if "[" in before["binding"]["path"] else "ip"
            with Traffic("tcp", lab.client, lab.gateway, INNER["gateway"][0]) as tcp:
                tcp.wait_until("bytes", above=1_000_000)
                seq = client.last_seq()
                lab.gateway.nft(
                    "table inet quiet {\n chain input {\n"
                    "  type filter hook input priority 0;\n"
                    f"  meta nfproto {'ipv6' if family == 'ip6' else 'ipv4'} "
                    f"udp dport {PORT} drop\n }}\n}}\n"
                )
                client.wait_state("ATTACHED", after=seq)
                reports = tcp.wait_until("bytes", above=1_000_000)
            after = client.status()["session"]
            assert not any(report["problem"] for report in reports)
            assert after["id"] == before["id"]
            assert after["binding"]["remote"] != before["binding"]["remote"]
        finally:
            client.close()
            gateway.close()
