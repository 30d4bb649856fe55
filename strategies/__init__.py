"""The built-in strategies, each a plug-in like anybody else's.

They arrive by name through the entry-point group ``cleaner.strategies`` and import nothing of
cleaner but ``cleaner.spi`` and ``cleaner.errors``.
"""

if __name__ != "cleaner.strategies":
    raise ImportError(
        "the built-in strategies are the package cleaner.strategies: "
        "install the project (pip install -e .) and choose them by name"
    )
