"""Each port, and nothing else, in one file or folder. Nothing but `controller.wiring` and tests imports from here."""
