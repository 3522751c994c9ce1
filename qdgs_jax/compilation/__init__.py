"""A config's programs for chips that are not there: memory, collectives, whether they fit."""
