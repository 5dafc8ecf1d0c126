"""Which ports count as taken."""

import socket
from contextlib import closing

import pytest

from services.ports import free_port, port_in_use


def test_a_listening_port_is_taken_and_a_closed_one_is_free() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        assert port_in_use("127.0.0.1", port)
    assert not port_in_use("127.0.0.1", port)


def test_a_listener_on_all_addresses_takes_the_port_on_loopback() -> None:
    with closing(socket.create_server(("0.0.0.0", 0))) as server:
        assert port_in_use("127.0.0.1", server.getsockname()[1])


def test_a_port_whose_last_connection_lingers_is_free() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    client = socket.create_connection(("127.0.0.1", port))
    accepted, _ = server.accept()
    accepted.close()  # the server's side closes first, and so holds TIME_WAIT
    client.close()
    server.close()
    assert not port_in_use("127.0.0.1", port)


def test_a_free_port_can_be_listened_on() -> None:
    port = free_port()
    assert not port_in_use("127.0.0.1", port)
    with closing(socket.create_server(("127.0.0.1", port))) as server:
        assert server.getsockname()[1] == port


def test_an_address_of_another_machine_is_an_error_rather_than_free() -> None:
    with pytest.raises(OSError):
        port_in_use("192.0.2.1", 80)
