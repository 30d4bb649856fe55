"""What the tests share: filled databases, random schemas, and eyes of their own."""
