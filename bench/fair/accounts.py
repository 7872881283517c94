"""`python -m bench.fair.accounts NAME=SHARE …`: creates users, prints a key of each."""

import os
import sys


def main(words: list[str]) -> None:
    """Creates the users in the database of CANOPY_HOME, which `up` has prepared."""
    import django

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "api.settings")
    django.setup()
    from api.accounts import keys
    from api.accounts.models import User

    for word in words:
        name, _, share = word.partition("=")
        print(keys.create(User.objects.create_user(name, share=float(share))))


if __name__ == "__main__":
    main(sys.argv[1:])
