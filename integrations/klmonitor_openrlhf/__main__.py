"""``python -m klmonitor_openrlhf``: see `klmonitor_openrlhf.command`."""

import sys

from klmonitor_openrlhf.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
