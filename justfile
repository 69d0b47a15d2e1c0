# Every recipe is one command, which does the same without just. The environment is that of the README's second command.

# The tests, without those that take minutes.
test:
    pytest

# All tests.
test-all:
    pytest -m "slow or not slow"

# Style and types.
lint:
    ruff check . && ruff format --check . && mypy

# The site, into site/; the examples in docstrings are tested by `test`, the site's code blocks by `test-all`.
docs:
    NO_MKDOCS_2_WARNING=1 mkdocs build --strict
