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

# The examples in docstrings, and what the README promises.
docs:
    pytest --doctest-modules varrl_lightning/algorithms varrl_lightning/metrics tests/test_readme.py
