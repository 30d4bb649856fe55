"""What the tests share: filled databases, random schemas, and eyes of their own."""

import pytest

pytest.register_assert_rewrite("support.cases")
