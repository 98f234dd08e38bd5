"""What the tests share: a hand on the ledger, agents for real workers, and the workers themselves."""
