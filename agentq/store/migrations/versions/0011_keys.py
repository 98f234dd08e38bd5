"""Keys: data keys of tenants, and tokens that let producers in"""

revision = "0011_keys"
down_revision = "0010_placement"
branch_labels = None
depends_on = None
phase = "before"


def upgrade() -> None:
    pass
