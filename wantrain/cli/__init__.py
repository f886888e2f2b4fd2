"""The command line: click commands, nothing else; nothing imports this package."""
