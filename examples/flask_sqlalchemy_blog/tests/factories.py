"""Rows for tests. They are committed by sessions that the application knows nothing of."""

from itertools import count

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from blog.models import Author, Post


class Factory:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.numbers = engine, count(1)

    def author(self, name: str = "") -> Author:
        return self._commit(Author(name=name or f"author {next(self.numbers)}"))

    def post(self, author: Author | None = None, title: str = "") -> Post:
        author = author or self.author()
        return self._commit(Post(title=title or f"post {next(self.numbers)}", author_id=author.id))

    def _commit(self, row):
        with Session(self.engine, expire_on_commit=False) as session:
            session.add(row)
            session.commit()
        return row
