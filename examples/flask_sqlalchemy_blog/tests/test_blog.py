import pytest
from factories import Factory
from flask.testing import FlaskClient
from sqlalchemy.exc import IntegrityError

from blog.models import Author, Post, db


@pytest.mark.parametrize("name", ["Ann", "Bob"])
def test_the_first_author_has_number_one(client: FlaskClient, name: str) -> None:
    answer = client.post("/authors", data={"name": name})
    assert (answer.status_code, answer.json) == (201, {"id": 1})
    assert client.get("/authors").json == {name: 0}


def test_a_name_is_taken_once(client: FlaskClient, make: Factory) -> None:
    make.author("Ann")
    assert client.post("/authors", data={"name": "Ann"}).status_code == 409
    assert client.get("/authors").json == {"Ann": 0}


@pytest.mark.parametrize("title", ["Tea", "Milk"])
def test_the_first_post_has_number_one(client: FlaskClient, make: Factory, title: str) -> None:
    ann = make.author("Ann")
    answer = client.post(f"/authors/{ann.id}/posts", data={"title": title})
    assert (answer.status_code, answer.json) == (201, {"id": 1})
    assert client.get("/posts").json == [{"title": title, "by": "Ann"}]


def test_a_title_is_taken_once(client: FlaskClient, make: Factory) -> None:
    post = make.post(title="Tea")
    data = {"title": "Tea"}
    assert client.post(f"/authors/{post.author_id}/posts", data=data).status_code == 409


def test_nobody_publishes_without_signing_up(client: FlaskClient) -> None:
    assert client.post("/authors/1/posts", data={"title": "Tea"}).status_code == 404
    assert client.get("/posts").json == []


def test_who_leaves_takes_the_posts_along(client: FlaskClient, make: Factory) -> None:
    ann, bob = make.author("Ann"), make.author("Bob")
    for author in (ann, ann, bob):
        make.post(author)
    assert client.delete(f"/authors/{ann.id}").status_code == 204
    assert client.get("/authors").json == {"Bob": 1}


def test_posts_are_listed_in_order(client: FlaskClient, make: Factory) -> None:
    ann = make.author("Ann")
    titles = [make.post(ann).title for _ in range(20)]
    assert [post["title"] for post in client.get("/posts").json] == titles


@pytest.mark.usefixtures("context")
@pytest.mark.parametrize("name", ["Ann", "Bob"])
def test_the_applications_session_commits(name: str) -> None:
    db.session.add(Post(title="Tea", author=Author(name=name)))
    db.session.commit()
    assert db.session.get(Post, 1).author.name == name


@pytest.mark.usefixtures("context")
def test_the_database_refuses_a_second_author_of_that_name() -> None:
    db.session.add_all([Author(name="Ann"), Author(name="Ann")])
    with pytest.raises(IntegrityError):
        db.session.commit()
