"""Health check of a container: `python -m deployments.answers URL` ends with 0 when something healthy listens there."""

import sys

from deployments.services import answers

if __name__ == "__main__":
    sys.exit(0 if answers(sys.argv[1]) else 1)
