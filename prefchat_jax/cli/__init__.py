"""The command line: `prefchat COMMAND`."""
