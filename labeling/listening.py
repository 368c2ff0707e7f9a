"""A port of one's own, taken before anything slow: two services that start at once must not answer for each other."""

import socket

from schemas.errors import LabelingError

BACKLOG = 2048


def take_port(host: str, port: int) -> socket.socket:
    """A socket that listens on an address, to be handed to the server; nobody else can have the port from now on.

    Raises:
        LabelingError: somebody has it, or it is no address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((host, port))
        taken.listen(BACKLOG)  # two sockets may be bound to a port that nobody listens on
    except OSError as error:
        taken.close()
        raise LabelingError(
            f"{host}:{port}",
            found=error.strerror or str(error),
            expected="a free port of an address of this machine",
            next_step="Choose another port, or end the program that has this one.",
        ) from error
    return taken
