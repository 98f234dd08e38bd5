"""Storage: rows and transactions. SQL stands in `sql/`, tables in `schema`."""
