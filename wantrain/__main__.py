"""`python -m wantrain`: the command line without the installed script."""

from wantrain.cli.main import main

if __name__ == "__main__":
    main(prog_name="wantrain")
