"""A blog: ``flask --app blog run``."""

import os

from flask import Flask

from blog.models import db
from blog.views import views


def create_app() -> Flask:
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE_URL"]
    db.init_app(app)
    app.register_blueprint(views)
    return app
