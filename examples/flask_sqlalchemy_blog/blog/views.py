from flask import Blueprint, request
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError

from blog.models import Author, Post, db

views = Blueprint("views", __name__)


@views.errorhandler(IntegrityError)
def refuse(error: IntegrityError) -> tuple[str, int]:
    db.session.rollback()
    return "There is one already.", 409


@views.post("/authors")
def sign_up() -> tuple[dict[str, int], int]:
    author = Author(name=request.form["name"])
    db.session.add(author)
    db.session.commit()
    return {"id": author.id}, 201


@views.post("/authors/<int:author_id>/posts")
def publish(author_id: int) -> tuple[dict[str, int], int]:
    post = Post(title=request.form["title"], author=db.get_or_404(Author, author_id))
    db.session.add(post)
    db.session.commit()
    return {"id": post.id}, 201


@views.delete("/authors/<int:author_id>")
def leave(author_id: int) -> tuple[str, int]:
    author = db.get_or_404(Author, author_id)
    for post in author.posts:
        db.session.delete(post)
    db.session.delete(author)
    db.session.commit()
    return "", 204


@views.get("/posts")
def posts() -> list[dict[str, str]]:
    every = db.session.scalars(select(Post).order_by(Post.id))
    return [{"title": post.title, "by": post.author.name} for post in every]


@views.get("/authors")
def authors() -> dict[str, int]:
    written = select(Author.name, func.count(Post.id)).outerjoin(Post).group_by(Author.name)
    return dict(db.session.execute(written).all())
