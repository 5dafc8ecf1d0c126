"""
What can go wrong with a server that we run; each class is named by what the caller can do.

ServiceError
├── ServiceMissing        install the program that the message names
├── ServicePortInUse      choose another port, or stop who holds it
├── ServiceDirectoryInUse another server runs on the data directory: use that one, or stop it
└── ServiceFailed         it started and ended, or never became ready: read the log lines in the message
"""


class ServiceError(Exception):
    """A third-party server could not be run."""


class ServiceMissing(ServiceError):
    """The program is not installed; the message says how to install it."""


class ServicePortInUse(ServiceError):
    """Somebody else listens on the port."""


class ServiceDirectoryInUse(ServiceError):
    """Another server runs on the same data directory."""


class ServiceFailed(ServiceError):
    """The server ended early, or was not ready in time; the message carries the end of its log."""
