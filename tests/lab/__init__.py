"""What runs in the lab's network: the kit's own tests, and the scenarios.

A scenario is a folder here with a ``test_*.py`` of the folder's name, marked ``uml``, that draws
its hosts in its docstring. It shows what it is about on a real kernel with the real daemons, and
reports its packets as rows of one table (`gdoi_lab.table.Row`): through ``watched(...,
scenario="name")`` of ``watch.py``, or with `gdoi_lab.table.report` where it counts by itself.
``deploy/lab scenarios [NAME...]`` runs them and prints the table, and so does ``deploy/test``.
"""

import pytest

# What a test calls there says what it found, as the test itself does.
pytest.register_assert_rewrite("tests.lab.watch")
