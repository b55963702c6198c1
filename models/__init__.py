"""Models: a decoder-only transformer that is read three ways: whole sequences, one token, many lanes."""
