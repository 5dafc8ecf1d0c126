"""
TCP ports on loopback: find a free one, and say whether one is taken.

Its one rule: the answer is about listening, which is what a server is about to do. A port whose last connections linger in
TIME_WAIT is free; a port that somebody listens on, on this address or on all addresses, is taken.
"""

import errno
import os
import socket


def free_port(host: str = "127.0.0.1") -> int:
    """
    A port that the kernel holds free at this moment.

    Nothing reserves it afterwards: prefer to let the server bind port 0 itself, and where it cannot, be ready to try again.
    """
    with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def port_in_use(host: str, port: int) -> bool:
    """
    Whether a server could not listen on the address because somebody else does.

    Raises:
        OSError: the address cannot be used for another reason (not of this machine, a privileged port).
    """
    with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
        if os.name == "posix":
            # Without SO_REUSEADDR a port in TIME_WAIT looks taken. With it, bind alone also succeeds beside a socket that is
            # bound and not yet listening; only listen tells. On Windows the option would steal the port instead.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE:
                return True
            raise
    return False


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
