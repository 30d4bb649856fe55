"""A project as a user of cleaner has it: models, a test suite, and ways to clean between tests."""
