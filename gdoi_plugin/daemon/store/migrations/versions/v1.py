"""Version 1: JSON documents in SQLite, a row for each acknowledgement.

Databases of this version are stamped with it before they are brought up to date; none is made any
more.
"""

revision = "1"
down_revision = None


def upgrade() -> None:
    """Where every database of the key server begins."""
