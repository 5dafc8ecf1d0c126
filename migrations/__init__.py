"""The database's revisions; `controller.adapters.postgres.migrate` applies them."""
