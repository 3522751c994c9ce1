"""Published experiments; only the command line imports from here."""
