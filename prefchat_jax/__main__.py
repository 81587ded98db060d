"""`python -m prefchat_jax`: the same as `prefchat`, where no script is on the path."""

import sys

from prefchat_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
