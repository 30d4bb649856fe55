"""Any database that SQLAlchemy knows, by nothing but SQLAlchemy."""
