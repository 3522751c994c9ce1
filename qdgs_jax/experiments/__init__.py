"""Published experiments; nobody imports from here but the command line."""
