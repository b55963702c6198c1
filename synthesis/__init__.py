"""Data that models make for models: labels, answers at requested attributes, preferences."""
