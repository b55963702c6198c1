"""Models: one transformer read three ways: whole texts, token by token, many lanes."""
