"""`python -m ziphius` is `ziphius`."""

from ziphius.cli import main

if __name__ == "__main__":
    main()
