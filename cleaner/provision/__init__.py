"""Servers and databases to run tests on."""
