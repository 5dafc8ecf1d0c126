"""`python -m bench.chaos`."""

import signal
import sys

from bench.chaos.cli import main

# As Ctrl-C: everything that was started is ended.
signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
sys.exit(main())
